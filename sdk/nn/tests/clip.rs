//! CLIP's text encoder against transformers: `tests/golden/sd3.py` made the reference values. The whole model is held against
//! it by the tests of reward-clip.

use std::path::{Path, PathBuf};

use advdmd_nn::clip::{Activation, ClipConfig, ClipText, ClipTextConfig, ClipVisionConfig};
use advdmd_nn::{Params, Weights, read_json};
use advdmd_sdk::Tuning;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3").join(name)
}

fn load(folder: &Path) -> ClipText {
    let config = ClipTextConfig::read(&folder.join("config.json")).unwrap();
    let weights = Weights::load_folder(folder, "model", Some(Kind::Float), Device::Cpu).unwrap();
    weights.check(&ClipText::layout(&config).unwrap(), "CLIP").unwrap();
    ClipText::new(&config, &Params::new(&weights, &Tuning::Frozen, &[], 0).unwrap()).unwrap()
}

/// Token ids of the golden prompts, `[B, 77]`.
fn token_ids(pipeline: &str, tokenizer: &str) -> Tensor {
    let prompts: Vec<String> = read_json(&golden(&format!("{pipeline}.prompts.json"))).unwrap();
    let tokens: Value = read_json(&golden(&format!("{pipeline}.tokens.json"))).unwrap();
    let known: Vec<String> = serde_json::from_value(tokens["prompts"].clone()).unwrap();
    let ids: Vec<Vec<i64>> = serde_json::from_value(tokens[tokenizer].clone()).unwrap();
    let rows = prompts.iter().map(|prompt| &ids[known.iter().position(|known| known == prompt).unwrap()]);
    Tensor::from_slice2(&rows.collect::<Vec<_>>())
}

#[track_caller]
fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let error = (found - expected).abs().max().double_value(&[]);
    println!("{what}: largest absolute error {error:.2e}");
    assert!(error <= 1e-5, "{what}: largest absolute error {error:e}");
}

/// Both activations, both rules for the end of the text, padding with the end token and with another.
#[test]
fn hidden_states_and_pooled_embedding_match_transformers() {
    for pipeline in ["sd3-tiny", "sd35-tiny"] {
        let values = Weights::load(&golden(&format!("{pipeline}.safetensors")), None, Device::Cpu).unwrap();
        let [context, pooled] = ["prompt_embeds", "pooled"].map(|key| values.get(key).unwrap());
        let (mut column, mut pooled_column) = (0, 0);
        for (encoder, tokenizer) in [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")] {
            let model = load(&golden(pipeline).join(encoder));
            let found = model.forward(&token_ids(pipeline, tokenizer)).unwrap();
            let (width, pooled_width) = (model.config().hidden_size, model.config().projection_dim);
            let expected = context.narrow(1, 0, 77).narrow(2, column, width);
            assert_close(&format!("{pipeline} {encoder}: tokens"), &found.penultimate, &expected);
            let expected = pooled.narrow(1, pooled_column, pooled_width);
            assert_close(&format!("{pipeline} {encoder}: pooled"), &found.pooled, &expected);
            column += width;
            pooled_column += pooled_width;
        }
    }
}

#[test]
fn tokens_see_only_those_before_them() {
    let model = load(&golden("sd3-tiny/text_encoder_2"));
    let ids = token_ids("sd3-tiny", "tokenizer_2");
    let whole = model.forward(&ids).unwrap().penultimate;
    let begin = model.forward(&ids.narrow(1, 0, 20)).unwrap().penultimate;
    assert_close("begin", &begin, &whole.narrow(1, 0, 20));
}

#[test]
fn wrong_input_is_an_error_that_names_it() {
    let model = load(&golden("sd3-tiny/text_encoder"));
    let ids = Tensor::zeros([2, 78], (Kind::Int64, Device::Cpu));
    let error = model.forward(&ids).unwrap_err().to_string();
    assert_eq!(error, "token ids: expected shape [B, L], L at most 77, found [2, 78]");

    let path = golden("sd3-tiny/text_encoder/config.json");
    let json: Value = read_json(&path).unwrap();
    let refused = |key: &str, value: Value| {
        let mut json = json.clone();
        json[key] = value;
        let config: Result<ClipTextConfig, _> = serde_json::from_value(json);
        config.map_or_else(|error| error.to_string(), |config| config.check().unwrap_err().to_string())
    };
    assert_eq!(
        refused("num_attention_heads", 5.into()),
        "num_attention_heads: expected a divisor of hidden_size = 32, found 5"
    );
    assert_eq!(refused("hidden_size", 0.into()), "hidden_size: expected 1 to 1048576, found 0");
    assert!(refused("hidden_act", "relu".into()).contains("unknown variant `relu`, expected `quick_gelu` or `gelu`"));
}

/// `config.json` as older and newer versions of transformers write it, and with all that may be left out.
#[test]
fn configurations_have_the_defaults_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |json: Value| {
        std::fs::write(&path, json.to_string()).unwrap();
        ClipConfig::read(&path).map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    };
    let plain = read(json!({})).unwrap();
    let text = ClipTextConfig { projection_dim: 512, ..ClipTextConfig::default() };
    assert_eq!(plain, ClipConfig { text, vision: ClipVisionConfig::default(), projection_dim: 512 });
    assert_eq!((plain.text.hidden_size, plain.vision.hidden_size, plain.vision.grid()), (512, 768, 7));
    // The whole model's projection counts; a `..._config_dict` overrules all of its part, as an older version's file has it.
    let both = read(json!({
        "projection_dim": 1024,
        "text_config": { "hidden_size": 640, "hidden_act": "gelu", "projection_dim": 7 },
        "vision_config": { "hidden_size": 960, "hidden_act": "gelu" }, "vision_config_dict": { "patch_size": 16 },
        "text_config_dict": null,
    }));
    let both = both.unwrap();
    assert_eq!((both.text.hidden_size, both.text.hidden_act, both.text.projection_dim), (640, Activation::Gelu, 1024));
    let vision = ClipVisionConfig { patch_size: 16, ..ClipVisionConfig::default() };
    assert_eq!(both.vision, vision);
    let refused = |json: Value| read(json).unwrap_err();
    assert_eq!(
        refused(json!({ "vision_config": { "patch_size": 225 } })),
        "FILE: vision_config: patch_size: expected at most image_size = 224, found 225"
    );
    assert_eq!(
        refused(json!({ "projection_dim": 0 })),
        "FILE: text_config: projection_dim: expected 1 to 1048576, found 0"
    );
}
