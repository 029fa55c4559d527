//! `include/advdmd.h` against the Rust definitions, and a plugin in C and C++ through the host's loader.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use advdmd_sdk::abi::{HEADER_SIZE, LIBTORCH, Layout, PROTOCOL, Plugin, SECTION, Status, layouts};
use advdmd_sdk::{DType, Error, Kind, LogProb, RewardBatch, TensorView};
use half::{bf16, f16};
use serde_json::json;

/// Types that a plugin in C has no use for: backbones need libtorch, and `abi_stable`'s description is Rust's.
const RUST_ONLY: [&str; 8] = [
    "BackboneObject",
    "BackboneVtable",
    "DenoiserObject",
    "DenoiserVtable",
    "LentConditioning",
    "LentRequest",
    "NamedTensor",
    "TypeLayout",
];

/// What stands in front of each table of functions.
const TABLE_HEAD: &str = "WithMetadata<SamplerVtable>";

type Numbers = BTreeMap<String, i64>;

/// The name of a Rust type in C.
fn c_name(rust: &str) -> String {
    match rust {
        "RStr" => return "advdmd_str".to_owned(),
        "RSlice" => return "advdmd_f64s".to_owned(),
        _ => {}
    }
    let mut name = "advdmd".to_owned();
    for letter in rust.chars() {
        if letter.is_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// Sizes and offsets that the C types must have.
fn expected(layouts: &[Layout]) -> Numbers {
    let head = layouts.iter().find(|layout| layout.name == TABLE_HEAD).unwrap().fields[0].1;
    let mut numbers = Numbers::from([("sizeof(advdmd_table_head)".to_owned(), head as i64)]);
    for layout in layouts.iter().filter(|layout| layout.name != TABLE_HEAD && !RUST_ONLY.contains(&layout.name)) {
        let name = c_name(layout.name);
        let start = if name.ends_with("_vtable") { head } else { 0 };
        numbers.insert(format!("sizeof({name})"), (start + layout.size) as i64);
        // A transparent wrapper's field has a number for a name, and is the type itself in C.
        for (field, offset) in layout.fields.iter().filter(|(field, _)| *field != "0") {
            numbers.insert(format!("offsetof({name}, {field})"), (start + offset) as i64);
        }
    }
    numbers
}

/// Constants that must agree; the device of the CPU and the log-probabilities are private, and proved by a plugin below.
fn constants() -> Numbers {
    let dtypes = [
        ("ADVDMD_F32", DType::F32),
        ("ADVDMD_F64", DType::F64),
        ("ADVDMD_F16", DType::F16),
        ("ADVDMD_BF16", DType::Bf16),
        ("ADVDMD_I64", DType::I64),
        ("ADVDMD_U8", DType::U8),
        ("ADVDMD_BOOL", DType::Bool),
    ];
    let statuses = [
        ("ADVDMD_OK", Status::OK),
        ("ADVDMD_CONFIG", Status::CONFIG),
        ("ADVDMD_INVALID", Status::INVALID),
        ("ADVDMD_UNSUPPORTED", Status::UNSUPPORTED),
        ("ADVDMD_PANIC", Status::PANIC),
        ("ADVDMD_FAILED", Status::FAILED),
    ];
    let protocol = [("ADVDMD_PROTOCOL_MAJOR", PROTOCOL.major), ("ADVDMD_PROTOCOL_MINOR", PROTOCOL.minor)];
    let dtypes = dtypes.map(|(name, dtype)| (name, dtype as i64));
    let statuses = statuses.map(|(name, status)| (name, i64::from(status.0)));
    let protocol = protocol.map(|(name, number)| (name, i64::from(number)));
    let all = dtypes.into_iter().chain(statuses).chain(protocol);
    all.map(|(name, number)| (name.to_owned(), number)).collect()
}

/// What the C compiler says of the same expressions.
fn measured(expressions: &Numbers) -> Numbers {
    let print = |text: &String| format!("    printf(\"%lld %s\\n\", (long long)({text}), \"{text}\");\n");
    let body: String = expressions.keys().map(print).collect();
    let source = common::scratch().join("sizes.c");
    std::fs::write(&source, format!("#include \"advdmd.h\"\nint main(void) {{\n{body}    return 0;\n}}\n")).unwrap();
    let program = source.with_extension("");
    common::compile("cc", &["-std=c99"], &[&source], &program);
    let output = Command::new(program).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let pairs = lines.lines().map(|line| line.split_once(' ').unwrap());
    pairs.map(|(number, expression)| (expression.to_owned(), number.parse().unwrap())).collect()
}

/// The expressions that differ, as "expression: Rust a, C b".
fn differences(rust: &Numbers, c: &Numbers) -> Vec<String> {
    let different = rust.iter().filter(|(expression, number)| c.get(*expression) != Some(number));
    different.map(|(expression, number)| format!("{expression}: Rust {number}, C {:?}", c.get(expression))).collect()
}

fn library(compiler: &str, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/c_plugin.c");
    let out = common::scratch().join(format!("libc_plugin-{}{}.so", compiler.replace('+', "p"), options.concat()));
    common::compile(compiler, &[&["-fPIC", "-shared"], options].concat(), &[&source], &out);
    out
}

#[test]
fn sizes_offsets_and_constants_are_those_of_rust() {
    let mut rust = expected(&layouts());
    rust.extend(constants());
    let c = measured(&rust);
    assert_eq!(differences(&rust, &c), Vec::<String>::new());
    assert_eq!(c["sizeof(advdmd_header)"], HEADER_SIZE as i64);
    let header = include_str!("../include/advdmd.h");
    assert!(header.contains(&format!("#define ADVDMD_SECTION \"{SECTION}\"\n")));
    // 14 types and the head of tables: a type that is dropped from the list would be compared no longer.
    assert_eq!(rust.keys().filter(|expression| expression.starts_with("sizeof")).count(), 17, "{:?}", rust.keys());
}

#[test]
fn a_field_that_moves_is_noticed() {
    let c = measured(&expected(&layouts()));
    for (index, layout) in layouts().iter().enumerate() {
        if RUST_ONLY.contains(&layout.name) {
            continue;
        }
        let mut larger = layouts();
        larger[index].size += 8;
        if layout.name != TABLE_HEAD {
            assert_ne!(differences(&expected(&larger), &c), Vec::<String>::new(), "the size of {}", layout.name);
        }
        for field in (0..layout.fields.len()).filter(|&field| layout.fields[field].0 != "0") {
            let mut moved = layouts();
            moved[index].fields[field].1 += 4;
            let name = (layout.name, layout.fields[field].0);
            assert_ne!(differences(&expected(&moved), &c), Vec::<String>::new(), "the place of {name:?}");
        }
    }
}

fn loads_and_works(path: &Path) {
    let plugin = Plugin::open(path).unwrap();
    let header = plugin.header();
    assert_eq!((header.name(), header.version(), header.sdk(), header.libtorch()), ("c-plugin", "1.2.3", "", ""));
    let names: Vec<_> = plugin.manifest().components.iter().map(|it| (it.kind, it.name.as_str())).collect();
    assert_eq!(names, [(Kind::Reward, "mean"), (Kind::Sampler, "euler")]);

    let config = json!({ "type": "mean", "scale": 0.5 });
    let mut reward = plugin.reward(&config, &common::init()).unwrap();
    assert!(reward.needs().images && reward.needs().on_cpu && !reward.needs().latents);
    let pixels: Vec<f32> = (0..24).map(|i| i as f32 / 8.0).collect();
    let weighted = |image: &[f32]| image.iter().zip(1..).map(|(x, n)| x * n as f32).sum::<f32>() * 0.5;
    let wanted = [weighted(&pixels[..12]) + 1.0, weighted(&pixels[12..]) + 3.0];
    let mut score = |images| {
        let batch = RewardBatch { prompts: vec!["a", "bcd"], images: Some(images), ..RewardBatch::default() };
        reward.score(&batch)
    };
    assert_eq!(score(TensorView::from_f32(&pixels, &[2, 3, 2, 2]).unwrap()).unwrap(), wanted);
    // Channels last, in the other types of floats: the same numbers.
    let channels_last = |image: usize, at: usize| pixels[image * 12 + at % 3 * 4 + at / 3];
    let order: Vec<f32> = (0..24).map(|flat| channels_last(flat / 12, flat % 12)).collect();
    let doubles: Vec<f64> = order.iter().map(|&x| f64::from(x)).collect();
    let halves: Vec<f16> = order.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = order.iter().map(|&x| bf16::from_f32(x)).collect();
    let types = [
        (DType::F64, bytemuck::cast_slice(&doubles)),
        (DType::F16, bytemuck::cast_slice(&halves)),
        (DType::Bf16, bytemuck::cast_slice(&brains)),
    ];
    for (dtype, bytes) in types {
        let view = TensorView::from_bytes(dtype, &[2, 3, 2, 2], &[12, 1, 6, 3], bytes).unwrap();
        assert_eq!(score(view).unwrap(), wanted, "{dtype:?}");
    }
    let whole = [0u8; 24];
    let error = score(TensorView::from_bytes(DType::U8, &[2, 3, 2, 2], &[12, 4, 2, 1], &whole).unwrap()).unwrap_err();
    assert_eq!(error, Error::invalid("images: expected floats, found type 5"));
    let error = score(TensorView::from_f32(&pixels, &[1, 3, 2, 4]).unwrap()).unwrap_err();
    let message = "images: expected shape [2, C, H, W], found 4 dimensions, the first of 1";
    assert_eq!(error, Error::invalid(message));

    let refused = |config| plugin.reward(&config, &common::init()).err().unwrap();
    let known = "expected `scale`";
    for (config, message) in [
        (json!({ "type": "mean", "scales": 1 }), format!("unknown key `scales`, {known}")),
        (json!({ "a": { "type": ["}", "\"", 2] }, "scale": 1 }), format!("unknown key `a`, {known}")),
        (json!({ "scale": 1, "b": "\\\",}" }), format!("unknown key `b`, {known}")),
        (json!({ "scale": "much" }), "scale: expected a number, found \"much\"".to_owned()),
        (json!({ "scale": [1] }), "scale: expected a number, found [1]".to_owned()),
        (json!({ "scale": null }), "scale: expected a number, found null".to_owned()),
    ] {
        assert_eq!(refused(config), Error::config(message));
    }
    for number in [0.1, -2.5e-3, 1e300, 7.0] {
        let mut reward = plugin.reward(&json!({ "scale": number }), &common::init()).unwrap();
        let images = Some(TensorView::from_f32(&[1.0], &[1, 1, 1, 1]).unwrap());
        let found = reward.score(&RewardBatch { prompts: vec![""], images, ..RewardBatch::default() }).unwrap();
        assert_eq!(found, [number as f32]);
    }

    let sampler = plugin.sampler(&json!({ "type": "euler" })).unwrap();
    assert_eq!((sampler.preserves_marginals(), sampler.order()), (false, 3));
    let sigmas = sampler.sigmas(4).unwrap();
    assert_eq!(sigmas, [1.0, 0.75, 0.5, 0.25, 0.0]);
    for (step, log_prob) in [LogProb::None, LogProb::Gaussian, LogProb::SquaredError].into_iter().enumerate() {
        let transition = sampler.transition(&sigmas, step).unwrap();
        assert_eq!((transition.a, transition.b, transition.c), (1.0, vec![-0.25], 0.25));
        assert_eq!(transition.log_prob, log_prob);
    }
    assert_eq!(sampler.transition(&sigmas, 3), Err(Error::invalid("step: found 3 of 5 sigmas")));
}

#[test]
fn plugins_in_c_and_cpp_load_and_work() {
    loads_and_works(&library("cc", &["-std=c99"]));
    loads_and_works(&library("c++", &["-xc++", "-std=c++11"]));
    assert!(LIBTORCH.is_empty() || cfg!(feature = "torch"));
}
