//! Weight files.

use std::collections::BTreeMap;

use advdmd_nn::{Stored, Weights};
use advdmd_sdk::{DType, SaveOptions, Tuning};
use tch::{Device, Kind, Tensor};

fn sample() -> Weights {
    let float = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
    [
        ("odd".to_owned(), Tensor::from_slice(&[1u8, 2, 3])),
        ("half".to_owned(), float.to_kind(Kind::BFloat16)),
        ("transposed".to_owned(), float.transpose(0, 1)),
        ("count".to_owned(), Tensor::from(7i64)),
        ("empty".to_owned(), Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))),
        ("float".to_owned(), float),
    ]
    .into_iter()
    .collect()
}

#[test]
fn files_come_back_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let metadata = BTreeMap::from([("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d".to_owned())]);
    sample().save(&path, &metadata).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let found = Weights::load(&path, None, Device::Cpu).unwrap();
    assert_eq!(found.len(), sample().len());
    for ((name, found), (_, expected)) in found.iter().zip(sample().iter()) {
        assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()), "{name}");
        assert_eq!(found, expected, "{name}");
    }
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");

    // Equal weights, equal bytes; over an existing file too, and nothing stays behind.
    sample().save(&path, &metadata).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn floats_are_converted_and_integers_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    sample().save(&path, &BTreeMap::new()).unwrap();
    let found = Weights::load(&path, Some(Kind::Half), Device::Cpu).unwrap();
    let kinds: Vec<_> = found.iter().map(|(_, tensor)| tensor.kind()).collect();
    assert_eq!(kinds, [Kind::Int64, Kind::Half, Kind::Half, Kind::Half, Kind::Uint8, Kind::Half]);
    assert_eq!(found.get("half"), found.get("float"));
}

#[test]
fn shards_are_read_by_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut files = [Weights::new(), Weights::new()];
    for (index, (name, tensor)) in sample().into_iter().enumerate() {
        files[index % 2].insert(name, tensor);
    }
    let mut map = serde_json::Map::new();
    for (index, file) in files.iter().enumerate() {
        let shard = format!("m-0000{}-of-00002.safetensors", index + 1);
        file.save(&at(&shard), &BTreeMap::new()).unwrap();
        map.extend(file.iter().map(|(name, _)| (name.to_owned(), shard.clone().into())));
    }
    let index = |map| serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string();
    std::fs::write(at("m.safetensors.index.json"), index(map)).unwrap();
    let found = Weights::load_folder(folder.path(), "m", None, Device::Cpu).unwrap();
    assert!(found.iter().zip(sample().iter()).all(|(found, expected)| found == expected));
    let files = |variant| Stored::files_of_folder(folder.path(), "m", variant);
    let [index_file, first, second] =
        ["m.safetensors.index.json", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"].map(at);
    assert_eq!(files(None).unwrap(), [index_file, first, second]);
    assert!(files(Some("fp16")).unwrap_err().to_string().contains("m.fp16.safetensors"));
    std::fs::write(at("m.fp16.safetensors"), "").unwrap();
    assert_eq!(files(Some("fp16")).unwrap(), [at("m.fp16.safetensors")]);

    let map = serde_json::Map::from_iter([("a".to_owned(), "../m.safetensors".into())]);
    std::fs::write(at("m.safetensors.index.json"), index(map)).unwrap();
    let error = Weights::load_folder(folder.path(), "m", None, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("m.safetensors.index.json") && error.contains("../m.safetensors"), "{error}");
}

#[test]
fn broken_files_are_errors_that_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.safetensors");
    let error = |path| Weights::load(path, None, Device::Cpu).unwrap_err().to_string();
    assert!(error(&path).contains("broken.safetensors"));
    for bytes in [&b""[..], b"short", b"\xff\xff\xff\xff\xff\xff\xff\xff{}", b"\x02\0\0\0\0\0\0\0{}trailing"] {
        std::fs::write(&path, bytes).unwrap();
        assert!(error(&path).contains("broken.safetensors"));
    }
    let missing = folder.path().join("absent").join("w.safetensors");
    let error = sample().save(&missing, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
}

#[test]
fn a_file_that_differs_in_one_bit_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let weights = sample();
    weights.save(&path, &BTreeMap::new()).unwrap();
    weights.check_saved(&path).unwrap();
    let mut other: Weights = weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.copy())).collect();
    other.insert("count", Tensor::from(8i64));
    let error = other.check_saved(&path).unwrap_err().to_string();
    assert!(error.ends_with("x.safetensors: read back, count is not what was written"), "{error}");
}

#[test]
fn an_update_below_the_last_digit_is_not_lost_in_silence() {
    let draw = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let weight = draw([32, 32]).to_kind(Kind::BFloat16);
    let base: Weights = [("a.weight".to_owned(), weight.shallow_clone())].into_iter().collect();
    let tuning = Tuning::Lora { rank: 2, alpha: 2.0, targets: Vec::new() };
    let merged = |size: f64, dtype, lossy| {
        let half = |factor: &str, tensor| (format!("transformer.a.lora_{factor}.weight"), tensor);
        let pair = [half("A", draw([2, 32])), half("B", draw([32, 2]) * size)];
        let update = pair[1].1.matmul(&pair[0].1);
        let options = SaveOptions { dtype, tuning: tuning.clone(), sigmas: None, lossy };
        let merged = base.merged(&pair, &options).map_err(|error| error.to_string())?;
        Ok::<_, String>((merged.get("a.weight").unwrap().copy(), weight.to_kind(Kind::Float) + update))
    };
    for (size, dtype) in [(1e-5, DType::F32), (0.1, DType::Bf16), (0.1, DType::F16)] {
        let (found, expected) = merged(size, dtype, false).unwrap();
        assert_eq!(found, expected.to_kind(dtype.into()));
    }
    let error = merged(1e-5, DType::Bf16, false).unwrap_err();
    assert!(error.contains("the merged weights lose ") && error.contains("`--dtype f32` keeps it"), "{error}");
    assert!(merged(1e-5, DType::Bf16, true).is_ok());
}
