//! What stands beside the vocabulary: special tokens and the longest prompt.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use advdmd_sdk::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::read_if_there;

/// Roles of special tokens, in the order in which transformers adds those that the vocabulary lacks.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Special tokens and sizes of `tokenizer_config.json` and, in folders older than `added_tokens_decoder`,
/// `special_tokens_map.json` and `added_tokens.json`, read as transformers' `_from_pretrained` reads them.
#[derive(Debug)]
pub struct Special {
    named: BTreeMap<&'static str, AddedToken>,
    /// Tokens with the ids that their file gives them.
    added: BTreeMap<u32, AddedToken>,
    /// Whether `added` overrules the vocabulary file's own list.
    decides: bool,
    additional: Vec<AddedToken>,
    max_length: Option<usize>,
}

/// A token as text, or with its properties.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Text(String),
    Full {
        content: String,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        normalized: Option<bool>,
        special: Option<bool>,
    },
}

impl Entry {
    /// `special`: what it is where the file does not say.
    fn into_token(self, default_special: bool) -> AddedToken {
        match self {
            Self::Text(content) => AddedToken::from(content, default_special),
            Self::Full { content, single_word, lstrip, rstrip, normalized, special } => {
                let special = special.unwrap_or(default_special);
                let token = AddedToken::from(content, special).single_word(single_word).lstrip(lstrip).rstrip(rstrip);
                token.normalized(normalized.unwrap_or(!special))
            }
        }
    }
}

/// What [`Special::read`] may read.
pub const FILES: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

impl Special {
    /// Reads the folder's files; none has to be there. `defaults` are the tokenizer class's own tokens, by role.
    ///
    /// # Errors
    /// A malformed file; the message names it.
    pub fn read(folder: &Path, defaults: &[(&'static str, &str)]) -> Result<Self> {
        let mut config = read_map(folder, "tokenizer_config.json")?;
        let decoder = config.remove("added_tokens_decoder");
        let decides = decoder.is_some();
        let mut named: BTreeMap<_, _> =
            defaults.iter().map(|(role, token)| (*role, AddedToken::from((*token).to_owned(), true))).collect();
        let mut additional = Vec::new();
        let mut take = |file: &str, map: &mut Map<String, Value>| -> Result<()> {
            for role in ROLES {
                if let Some(value) = map.remove(role).filter(|value| !value.is_null()) {
                    named.insert(role, token(value).map_err(|error| error.context(format!("{file}: {role}")))?);
                }
            }
            for list in ["additional_special_tokens", "extra_special_tokens"] {
                if let Some(Value::Array(values)) = map.remove(list) {
                    let tokens = values.into_iter().map(token).collect::<Result<Vec<_>>>();
                    additional.extend(tokens.map_err(|error| error.context(format!("{file}: {list}")))?);
                }
            }
            Ok(())
        };
        take("tokenizer_config.json", &mut config)?;
        let mut added = BTreeMap::new();
        if let Some(decoder) = decoder {
            let context = "tokenizer_config.json: added_tokens_decoder";
            let entries: BTreeMap<u32, Entry> =
                serde_json::from_value(decoder).map_err(|error| Error::from(error).context(context))?;
            added.extend(entries.into_iter().map(|(id, entry)| (id, entry.into_token(false))));
        } else {
            take("special_tokens_map.json", &mut read_map(folder, "special_tokens_map.json")?)?;
            let special: BTreeSet<_> = named.values().chain(&additional).map(|token| token.content.clone()).collect();
            let ids: BTreeMap<String, u32> = read_if_there(folder, "added_tokens.json")?.unwrap_or_default();
            for (content, id) in ids {
                let is_special = special.contains(&content);
                added.insert(id, AddedToken::from(content, is_special));
            }
        }
        // Some configurations hold a number beyond all bounds for "no limit".
        let max_length = config.get("model_max_length").and_then(Value::as_u64);
        let max_length = max_length.and_then(|length| u32::try_from(length).ok()).map(|length| length as usize);
        Ok(Self { named, added, decides, additional, max_length })
    }

    /// The token of that role.
    ///
    /// # Errors
    /// None of that role.
    pub fn named(&self, role: &str) -> Result<&str> {
        let token = self.named.get(role).ok_or_else(|| Error::invalid(format!("tokenizer_config.json: no {role}")))?;
        Ok(&token.content)
    }

    /// `model_max_length`, where it limits anything.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// Makes the tokenizer recognise these tokens inside a prompt, before it cuts it up.
    ///
    /// # Errors
    /// A token that has another id in the vocabulary than in the file that adds it.
    pub fn add_to(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let own: BTreeSet<_> = tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let files = self.added.values().filter(|token| self.decides || !own.contains(&token.content));
        let mut tokens: Vec<_> = files.cloned().collect();
        let named = ROLES.iter().filter_map(|role| self.named.get(role)).chain(&self.additional);
        let known = |content: &str| own.contains(content) || self.added.values().any(|token| token.content == content);
        // Of one token under several roles the properties of the last are used, as by transformers.
        tokens.extend(named.filter(|token| !known(&token.content)).cloned());
        tokenizer.add_tokens(tokens).map_err(Error::failed)?;
        for (id, token) in &self.added {
            let found = tokenizer.token_to_id(&token.content);
            if found != Some(*id) {
                let (content, found) = (&token.content, found.map_or("none".to_owned(), |id| id.to_string()));
                return Err(Error::invalid(format!("added token {content:?}: expected the id {id}, found {found}")));
            }
        }
        Ok(())
    }
}

fn token(value: Value) -> Result<AddedToken> {
    Ok(serde_json::from_value::<Entry>(value)?.into_token(true))
}

fn read_map(folder: &Path, file: &str) -> Result<Map<String, Value>> {
    Ok(read_if_there(folder, file)?.unwrap_or_default())
}
