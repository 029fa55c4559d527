//! What is read, and what is refused.

use super::*;

fn error(bytes: &[u8]) -> String {
    Pickle::read(bytes).unwrap_err()
}

#[test]
fn plain_data_is_read() {
    // {'epoch': 3, 'l': [1.5, None, True, -2]} as Python 3 writes it in protocols 2 and 4.
    let two = b"\x80\x02}q\x00(X\x05\x00\x00\x00epochq\x01K\x03X\x01\x00\x00\x00lq\x02]q\x03(G?\xf8\0\0\0\0\0\0N\x88J\xfe\xff\xff\xffeu.";
    let four = b"\x80\x04\x95\x23\0\0\0\0\0\0\0}\x94(\x8c\x05epoch\x94K\x03\x8c\x01l\x94]\x94(G?\xf8\0\0\0\0\0\0N\x88J\xfe\xff\xff\xffeu.";
    for bytes in [&two[..], four] {
        let pickle = Pickle::read(bytes).unwrap();
        let Value::Dict(dict) = pickle.root() else { panic!("{:?}", pickle.root()) };
        let entries: HashMap<_, _> = pickle.entries(dict).collect();
        assert_eq!(entries["epoch"], &Value::Int(Some(3)));
        let Value::List(list) = entries["l"] else { panic!("{entries:?}") };
        let items: Vec<_> = list.iter().map(|id| pickle.get(*id).clone()).collect();
        assert_eq!(items, [Value::Float(1.5), Value::None, Value::Bool(true), Value::Int(Some(-2))]);
    }
}

#[test]
fn what_would_run_is_refused_by_its_name() {
    assert_eq!(error(b"cos\nsystem\n(S'true'\ntR."), "the pickle asks to run `os.system`; refused");
    assert!(error(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.").contains("`builtins.eval`"));
    assert!(error(b"(ios\nsystem\n.").contains("`os.system`"));
    assert!(error(b"ctorch\nload\n.").contains("`torch.load`"));
    assert!(error(b"ca\x1b[2J\nb\n.").contains(r"`a\u{1b}[2J.b`"));
    // A known name that is called with what it does not take, and objects that are made otherwise.
    assert!(error(b"ccollections\nOrderedDict\n(K\x01tR.").contains("OrderedDict with 1 arguments"));
    assert!(error(b"ccollections\nOrderedDict\n)\x81.").contains("a constructor"));
    assert!(error(b"K\x01)R.").contains("another call"));
}

#[test]
fn tensors_lie_in_their_storages() {
    let tensor = |offset: &str, shape: &str, strides: &str| {
        let text = format!(
            "ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI6\ntQI{offset}\n{shape}{strides}I00\nccollections\nOrderedDict\n)RtR."
        );
        Pickle::read(text.as_bytes()).map(|pickle| pickle.root().clone())
    };
    let storage = Storage { key: "0".to_owned(), dtype: "float32", count: 6 };
    let expected = StoredTensor { storage, offset: 1, shape: vec![2, 2], strides: vec![1, 3] };
    assert_eq!(tensor("1", "(I2\nI2\nt", "(I1\nI3\nt"), Ok(Value::Tensor(Box::new(expected))));
    for (offset, shape, strides) in [
        ("3", "(I2\nI2\nt", "(I1\nI3\nt"),
        ("0", "(I7\nt", "(I0\nt"),
        ("0", "(I2\nt", "(I9223372036854775807\nt"),
        ("9223372036854775807", "(I2\nt", "(I9223372036854775807\nt"),
    ] {
        let error = tensor(offset, shape, strides).unwrap_err();
        assert!(error.contains("does not lie in its storage of 6 numbers"), "{error}");
    }
    assert!(tensor("-1", "(I2\nt", "(I1\nt").unwrap_err().contains("damaged"));
}

#[test]
fn damage_is_an_error() {
    for bytes in [&b""[..], b".", b"(.", b"e.", b"]K", b"h\x07.", b"a.", b"(K\x01d.", b"X\xff\xff\xff\xffa.", b"\xff."]
    {
        assert!(!error(bytes).is_empty());
    }
    assert!(error(&vec![b'N'; LONGEST + 1]).contains("bytes, expected at most"));
}
