//! Tokenizers and text encoders against transformers and diffusers: `tests/golden/sd3.py` made the reference values.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use advdmd_nn::{PromptTokenizer, Weights, read_json};
use backbone_sd3::text::{TextEncoders, TextOptions};
use common::{Golden, assert_close, edit, largest};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Tokens {
    prompts: Vec<String>,
    #[serde(flatten)]
    ids: BTreeMap<String, Vec<Vec<i64>>>,
}

fn refs(prompts: &[String]) -> Vec<&str> {
    prompts.iter().map(String::as_str).collect()
}

fn load(golden: &Golden) -> TextEncoders {
    TextEncoders::load(&golden.folder, None, golden.text_options(Kind::Float)).unwrap()
}

/// A backbone moves between threads with all it holds.
#[test]
fn encoders_may_change_threads() {
    fn movable<T: Send>() {}
    movable::<TextEncoders>();
    movable::<backbone_sd3::vae::Vae>();
}

#[test]
fn token_ids_match_transformers() {
    for golden in Golden::all() {
        let tokens: Tokens = read_json(&golden.folder.with_extension("tokens.json")).unwrap();
        for (name, expected) in &tokens.ids {
            let folder = golden.folder.join(name);
            let tokenizer = if name == "tokenizer_3" {
                PromptTokenizer::t5(&folder).unwrap().with_length(256).unwrap()
            } else {
                let (tokenizer, length) = PromptTokenizer::clip(&folder).unwrap();
                assert_eq!(length, Some(77));
                tokenizer.with_length(77).unwrap()
            };
            let found = tokenizer.encode(&refs(&tokens.prompts), 1 << 20, Device::Cpu).unwrap();
            for (row, (prompt, expected)) in tokens.prompts.iter().zip(expected).enumerate() {
                let found = Vec::<i64>::try_from(found.get(row as i64)).unwrap();
                assert_eq!(&found, expected, "{} {name}: {prompt:?}", golden.name);
            }
        }
    }
}

/// Folders older than `added_tokens_decoder`: its tokens are named elsewhere.
#[test]
fn older_folders_give_the_same_token_ids() {
    let golden = Golden::named("sd3-tiny");
    let copy = golden.copy();
    let tokens: Tokens = read_json(&golden.folder.with_extension("tokens.json")).unwrap();
    let folder = copy.path().join("tokenizer_2");
    let path = folder.join("tokenizer_config.json");
    let mut config: serde_json::Value = read_json(&path).unwrap();
    assert!(config.as_object_mut().unwrap().remove("added_tokens_decoder").is_some());
    let check = |config: &serde_json::Value| {
        std::fs::write(&path, config.to_string()).unwrap();
        let (tokenizer, _) = PromptTokenizer::clip(&folder).unwrap();
        let tokenizer = tokenizer.with_length(77).unwrap();
        let known = tokens.prompts.iter().zip(&tokens.ids["tokenizer_2"]);
        // Whether a special token is found in capitals too, the other files say otherwise.
        for (prompt, expected) in known.filter(|(prompt, _)| !prompt.contains("<|EndOfText|>")) {
            let found = tokenizer.encode(&[prompt], 664, Device::Cpu).unwrap();
            assert_eq!(&Vec::<i64>::try_from(found.view(-1)).unwrap(), expected, "{prompt:?}");
        }
    };
    check(&config);
    config["pad_token"] = "&".into();
    check(&config); // special_tokens_map.json has the last word
    std::fs::remove_file(folder.join("special_tokens_map.json")).unwrap();
    config["pad_token"] = serde_json::json!({ "__type": "AddedToken", "content": "!", "special": true });
    check(&config);
    std::fs::write(folder.join("added_tokens.json"), "{\"<new>\": 664}").unwrap();
    check(&config);
    let (tokenizer, _) = PromptTokenizer::clip(&folder).unwrap();
    let tokenizer = tokenizer.with_length(5).unwrap();
    let found = tokenizer.encode(&["<new>"], 665, Device::Cpu).unwrap();
    assert_eq!(Vec::<i64>::try_from(found.view(-1)).unwrap(), [662, 664, 663, 0, 0]);
    let error = tokenizer.encode(&["<new>"], 664, Device::Cpu).unwrap_err().to_string();
    assert_eq!(error, "prompt \"<new>\": the tokenizer gives token 664, but the model's vocab_size is 664");
}

#[test]
fn embeddings_match_diffusers() {
    for golden in Golden::all() {
        let encoders = load(&golden);
        let prompts = golden.prompts();
        let found = encoders.encode(&refs(&prompts)).unwrap();
        assert!(found.mask.is_none());
        golden.assert_close("prompt_embeds", &found.context, 1e-5);
        golden.assert_close("pooled", &found.pooled.unwrap(), 1e-5);
        let negative = encoders.encode(&vec![""; prompts.len()]).unwrap();
        golden.assert_close("negative_prompt_embeds", &negative.context, 1e-5);
        golden.assert_close("negative_pooled", &negative.pooled.unwrap(), 1e-5);
    }
}

#[test]
fn many_prompts_are_encoded_as_each_alone() {
    let golden = Golden::named("sd35-tiny");
    let encoders = load(&golden);
    let prompts: Vec<_> = (0..19).map(|n| format!("{n} foxes")).collect();
    let all = encoders.encode(&refs(&prompts)).unwrap();
    assert_eq!(all.context.size(), [19, 333, 48]);
    for (row, prompt) in prompts.iter().enumerate() {
        let one = encoders.encode(&[prompt]).unwrap();
        assert_close(prompt, &all.context.get(row as i64).unsqueeze(0), &one.context, 1e-5);
    }
    let none = encoders.encode(&[]).unwrap();
    assert_eq!((none.context.size(), none.pooled.unwrap().size()), (vec![0, 333, 48], vec![0, 52]));
}

#[test]
fn without_t5_its_tokens_are_zeros() {
    let golden = Golden::named("sd3-tiny");
    let expected = golden.get("prompt_embeds").narrow(1, 0, 77);
    let check = |folder: &Path, options: TextOptions| {
        let encoders = TextEncoders::load(folder, None, options).unwrap();
        assert!(!encoders.has_t5());
        let found = encoders.encode(&refs(&golden.prompts())).unwrap();
        assert_eq!(found.context.size()[1], 77 + options.t5_tokens);
        assert_close("CLIP", &found.context.narrow(1, 0, 77), &expected, 1e-5);
        assert_eq!(largest(&found.context.narrow(1, 77, options.t5_tokens)), 0.0);
        golden.assert_close("pooled", &found.pooled.unwrap(), 1e-5);
    };
    let options = golden.text_options(Kind::Float);
    check(&golden.folder, TextOptions { t5: false, ..options });
    check(&golden.folder, TextOptions { t5: false, t5_tokens: 77, ..options });

    // A model that has none.
    let copy = golden.copy();
    for folder in ["text_encoder_3", "tokenizer_3"] {
        std::fs::remove_dir_all(copy.path().join(folder)).unwrap();
    }
    let error = TextEncoders::load(copy.path(), None, options).unwrap_err().to_string();
    assert!(error.contains("text_encoder_3: model_index.json names T5EncoderModel, but the folder is missing"));
    let index = copy.path().join("model_index.json");
    let mut json: serde_json::Value = read_json(&index).unwrap();
    json["text_encoder_3"] = serde_json::json!([null, null]);
    std::fs::write(&index, json.to_string()).unwrap();
    check(copy.path(), options);
    std::fs::remove_file(index).unwrap();
    check(copy.path(), options);
}

#[test]
fn another_length_of_t5_cuts_and_pads() {
    let golden = Golden::named("sd3-tiny");
    let options = TextOptions { t5_tokens: 77, ..golden.text_options(Kind::Float) };
    let encoders = TextEncoders::load(&golden.folder, None, options).unwrap();
    let found = encoders.encode(&refs(&golden.prompts())).unwrap().context;
    assert_eq!(found.size(), [4, 154, 64]);
    let error = |t5_tokens| {
        let options = TextOptions { t5_tokens, ..options };
        TextEncoders::load(&golden.folder, None, options).unwrap_err().to_string()
    };
    assert_eq!(error(0), "t5_tokens: expected 1 to 512, found 0");
    assert!(error(1).contains("tokens a prompt: expected at least 2, found 1"));
}

#[test]
fn half_precision_stays_near() {
    for golden in [Golden::named("sd3-tiny"), Golden::named("sd35-tiny")] {
        let encoders = TextEncoders::load(&golden.folder, None, golden.text_options(Kind::BFloat16)).unwrap();
        let found = encoders.encode(&refs(&golden.prompts())).unwrap();
        let relative = |key: &str, found: &Tensor| {
            let expected = golden.get(key);
            let error = ((found - &expected).norm() / expected.norm()).double_value(&[]);
            println!("{}: {key} in bfloat16, relative error {error:.2e}", golden.name);
            assert!(error < 0.02, "{key}: {error}");
        };
        relative("prompt_embeds", &found.context);
        relative("pooled", &found.pooled.unwrap());
    }
    let golden = Golden::named("sd3-tiny");
    let options = golden.text_options(Kind::Half);
    let error = TextEncoders::load(&golden.folder, None, options).unwrap_err().to_string();
    assert!(error.contains("text_encoder_3: T5 overflows in float16; compute in bf16 or f32"), "{error}");
    let clip = TextEncoders::load(&golden.folder, None, TextOptions { t5: false, ..options }).unwrap();
    let found = clip.encode(&refs(&golden.prompts())).unwrap();
    assert_close("CLIP in float16", &found.pooled.unwrap().to_kind(Kind::Float), &golden.get("pooled"), 0.02);
}

#[test]
fn wrong_folders_are_errors_that_name_them() {
    let golden = Golden::named("sd3-tiny");
    let options = golden.text_options(Kind::Float);
    let fails = |damage: &dyn Fn(&Path)| {
        let copy = golden.copy();
        damage(copy.path());
        let error = TextEncoders::load(copy.path(), None, options).unwrap_err().to_string();
        error.replace(&format!("{}/", copy.path().display()), "")
    };
    let remove = |file: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(file)).unwrap();

    let error = fails(&remove("tokenizer_2/merges.txt"));
    let expected = "no tokenizer: expected tokenizer.json, or vocab.json and merges.txt; merges.txt missing";
    assert_eq!(error, format!("tokenizer_2: {expected}"));
    let error = fails(&|folder| std::fs::remove_dir_all(folder.join("tokenizer")).unwrap());
    assert!(error.ends_with("merges.txt; vocab.json and merges.txt missing"), "{error}");
    let error = fails(&remove("tokenizer_3/tokenizer.json"));
    assert_eq!(error, "tokenizer_3: no tokenizer: tokenizer.json is missing");
    let error = fails(&|folder| {
        let folder = folder.join("tokenizer_3");
        std::fs::rename(folder.join("tokenizer.json"), folder.join("spiece.model")).unwrap();
    });
    assert!(error.contains("spiece.model is not read. Convert it once with transformers: python -c '"), "{error}");
    let error = fails(&|folder| std::fs::write(folder.join("tokenizer/vocab.json"), "{").unwrap());
    assert!(error.contains("tokenizer: vocab.json: EOF"), "{error}");
    let error = fails(&|folder| edit(&folder.join("tokenizer/merges.txt"), "t h", "t  h"));
    assert!(error.contains("tokenizer: merges.txt: line 2: expected two pieces, found \"t  h"), "{error}");
    let error = fails(&|folder| edit(&folder.join("tokenizer/vocab.json"), "<|endoftext|>", "<|end|>"));
    assert!(error.contains("tokenizer: vocab.json lacks eos_token \"<|endoftext|>\""), "{error}");
    let error = fails(&|folder| edit(&folder.join("tokenizer/tokenizer_config.json"), "\"662\"", "\"7\""));
    assert!(error.contains("added token \"<|startoftext|>\": expected the id 7, found 662"), "{error}");
    let error = fails(&|folder| {
        let from = "\"model_max_length\": 77";
        edit(&folder.join("tokenizer/tokenizer_config.json"), from, "\"model_max_length\": 78");
    });
    assert!(
        error.contains("tokenizer: 78 tokens a prompt, but text_encoder has max_position_embeddings = 77"),
        "{error}"
    );

    let error = fails(&remove("text_encoder/config.json"));
    assert!(error.starts_with("text_encoder/config.json: No such file"), "{error}");
    let error = fails(&|folder| edit(&folder.join("text_encoder/config.json"), "quick_gelu", "relu"));
    assert!(error.starts_with("text_encoder/config.json: unknown variant `relu`, expected"), "{error}");
    let error = fails(&|folder| edit(&folder.join("text_encoder_3/config.json"), "gated-gelu", "relu"));
    assert!(error.contains("text_encoder_3/config.json: feed_forward_proj: expected \"gated-gelu\", found \"relu\""));
    let error =
        fails(&|folder| edit(&folder.join("text_encoder_3/config.json"), "\"vocab_size\": 318", "\"vocab_size\": 319"));
    assert!(
        error.contains("text_encoder_3/model.safetensors: weights do not fit; 1 misshapen: shared.weight expected"),
        "{error}"
    );
    let error = fails(&|folder| {
        damage(&folder.join("text_encoder_2/model.safetensors"), |name| !name.ends_with("layers.1.mlp.fc2.bias"));
    });
    let missing = "1 missing: text_model.encoder.layers.1.mlp.fc2.bias [24]";
    assert_eq!(error, format!("text_encoder_2/model.safetensors: weights do not fit; {missing}"));

    let error = |options| TextEncoders::load(&golden.folder, None, options).unwrap_err().to_string();
    let found = error(TextOptions { pooled_width: 2048, ..options });
    assert!(found.ends_with("projection_dim of 2048 together, the transformer's pooled_projection_dim, found 48"));
    let found = error(TextOptions { context_width: 55, ..options });
    assert!(found.contains("hidden_size of at most 55 together"), "{found}");
    let found = error(TextOptions { context_width: 4096, ..options });
    assert!(found.ends_with("text_encoder_3: expected d_model 4096, the transformer's joint_attention_dim, found 64"));
}

/// Rewrites a weight file with only the tensors that `keep` keeps.
fn damage(path: &Path, keep: impl Fn(&str) -> bool) {
    let weights = Weights::load(path, None, Device::Cpu).unwrap();
    let kept: Weights = weights.into_iter().filter(|(name, _)| keep(name)).collect();
    kept.save(path, &BTreeMap::new()).unwrap();
}

#[test]
fn other_names_of_the_same_weights_are_read() {
    let golden = Golden::named("sd3-tiny");
    let copy = golden.copy();
    let change = |file: &str, change: &dyn Fn(&mut Weights)| {
        let path = copy.path().join(file).join("model.safetensors");
        let mut weights = Weights::load(&path, None, Device::Cpu).unwrap();
        change(&mut weights);
        weights.save(&path, &BTreeMap::new()).unwrap();
    };
    let prompts = golden.prompts();
    let check = || {
        let encoders = TextEncoders::load(copy.path(), None, golden.text_options(Kind::Float)).unwrap();
        golden.assert_close("prompt_embeds", &encoders.encode(&refs(&prompts)).unwrap().context, 1e-5);
    };
    change("text_encoder", &|weights| {
        weights.insert("text_model.embeddings.position_ids", Tensor::arange(77, (Kind::Int64, Device::Cpu)));
    });
    let table = |weights: &Weights| weights.get("shared.weight").unwrap().shallow_clone();
    change("text_encoder_3", &|weights| weights.insert("encoder.embed_tokens.weight", table(weights)));
    check();
    damage(&copy.path().join("text_encoder_3/model.safetensors"), |name| name != "shared.weight");
    check();
}
