//! Embedded prompts by id: each prompt goes through the text encoder once in a run.

use advdmd_sdk::{Backbone, Conditioning};
use tch::{Device, Tensor};

use crate::Result;

/// Prompts encoded at a time, so that a large encoder's activations stay small.
const ENCODE_BATCH: usize = 64;

/// Embeddings of a list of prompts, and of the null prompt behind them.
#[derive(Debug)]
pub struct PromptTable {
    rows: Conditioning,
    null: i64,
    device: Device,
}

impl PromptTable {
    /// Encodes `prompts` and the backbone's null prompt.
    ///
    /// # Errors
    /// A prompt that the backbone refuses.
    pub fn new(backbone: &dyn Backbone, prompts: &[&str]) -> Result<Self> {
        let null_prompt = backbone.spec().null_prompt;
        let all: Vec<&str> = prompts.iter().copied().chain([null_prompt.as_str()]).collect();
        let mut rows: Option<Conditioning> = None;
        for batch in all.chunks(ENCODE_BATCH) {
            let encoded = tch::no_grad(|| backbone.encode_text(batch))?;
            rows = Some(match rows {
                None => encoded,
                Some(rows) => rows.concat(&encoded),
            });
        }
        let rows = rows.unwrap_or_else(|| unreachable!("the null prompt is always there"));
        let device = rows.context.device();
        Ok(Self { rows, null: prompts.len() as i64, device })
    }

    /// Number of prompts, the null prompt not among them.
    #[expect(clippy::len_without_is_empty, reason = "a table without prompts is of no use, and of no harm")]
    pub fn len(&self) -> usize {
        self.null as usize
    }

    /// The embeddings of prompts by id, one row each.
    pub fn rows(&self, ids: &[usize]) -> Conditioning {
        let ids: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        self.rows.select(&Tensor::from_slice(&ids).to_device(self.device))
    }

    /// The same with the null prompt for `None`.
    pub fn rows_or_null(&self, ids: &[Option<usize>]) -> Conditioning {
        let ids: Vec<i64> = ids.iter().map(|id| id.map_or(self.null, |id| id as i64)).collect();
        self.rows.select(&Tensor::from_slice(&ids).to_device(self.device))
    }

    /// The null prompt's embedding, `count` times.
    pub fn null(&self, count: usize) -> Conditioning {
        self.rows.select(&Tensor::full([count as i64], self.null, (tch::Kind::Int64, self.device)))
    }
}
