//! A plan in words.

use std::fmt;

use indicatif::{DecimalBytes, HumanCount};

use super::{Arithmetic, Passes, Plan};
use crate::progress::duration;

/// Bytes for people: "1.4 GB".
pub fn bytes(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

/// "1 update", "2 updates".
fn count(number: u64, thing: &str) -> String {
    let ending = if thing.ends_with("ch") { "es" } else { "s" };
    if number == 1 { format!("1 {thing}") } else { format!("{} {thing}{ending}", grouped(number)) }
}

/// Thousands apart: 64,000.
fn grouped(number: u64) -> String {
    HumanCount(number).to_string()
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { groups, group_size, samples, micro_batch, chunks, last_chunk, .. } = *self;
        write!(
            f,
            "batch    {} x {} = {} an update, ",
            count(groups, "prompt"),
            count(group_size, "sample"),
            count(samples, "sample")
        )?;
        match (chunks, last_chunk == micro_batch) {
            (1, _) => writeln!(f, "in one micro-batch")?,
            (_, true) => writeln!(f, "in {chunks} micro-batches of {micro_batch}")?,
            (_, false) => {
                writeln!(f, "in {} of {micro_batch} and one of {last_chunk}", count(chunks - 1, "micro-batch"))?;
            }
        }
        let trained = if self.trained_steps == self.steps {
            "all are trained in each update".to_owned()
        } else {
            format!("{} of them drawn for each update", self.trained_steps)
        };
        writeln!(
            f,
            "steps    {} from noise to image, {} with noise (the policy's actions); {trained}",
            self.steps, self.stochastic_steps
        )?;
        writeln!(
            f,
            "critic   {} on each rollout, with {}; {} of warm-up",
            count(self.critic_updates, "update"),
            count(self.critic_updates.saturating_mul(samples), "real image"),
            count(self.warmup, "update"),
        )?;
        write!(
            f,
            "run      {}: {}, {}, {}",
            count(self.updates, "update"),
            count(self.updates.saturating_mul(groups), "group"),
            count(self.updates.saturating_mul(samples), "sample"),
            count(self.updates.saturating_mul(self.critic_updates).saturating_add(self.warmup), "critic update"),
        )
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.arithmetic)?;
        writeln!(f, "passes of an update, in samples")?;
        writeln!(f, "  {:<10}{:>10}{:>10}", "", "forward", "backward")?;
        for (name, Passes { forward, backward }) in
            [("student", self.passes.student), ("teacher", self.passes.teacher), ("fake", self.passes.fake)]
        {
            writeln!(f, "  {name:<10}{:>10}{:>10}", grouped(forward), grouped(backward))?;
        }
        match &self.memory {
            Some(memory) => {
                writeln!(f, "\nmemory, in tensors on the device")?;
                for (part, size) in &memory.resident {
                    writeln!(f, "  {part:<20}{:>10}", bytes(*size))?;
                }
                writeln!(f, "  {:<20}{:>10}", "rollout", bytes(memory.rollout))?;
                for (phase, size) in &memory.phases {
                    writeln!(
                        f,
                        "  {:<20}{:>10}  with gradients and activations",
                        format!("peak in {phase}"),
                        bytes(*size)
                    )?;
                }
                writeln!(f, "  {:<20}{:>10}", "peak", bytes(memory.peak))?;
            }
            None => writeln!(f, "\nmemory: this device cannot be counted")?,
        }
        let disk = &self.disk;
        writeln!(
            f,
            "\ndisk     {} a checkpoint, up to {} of them at a time; metrics {}",
            bytes(disk.checkpoint),
            bytes(disk.checkpoints),
            bytes(disk.metrics)
        )?;
        if disk.cache > 0 {
            writeln!(f, "cache    {} of embeddings and latents, shared by all runs of this model", bytes(disk.cache))?;
        }
        let time = &self.time;
        let share =
            |(phase, seconds): &(String, f64)| format!("{phase} {:.0} %", 100.0 * seconds / time.update.max(1e-12));
        let shares: Vec<_> = time.phases.iter().map(share).collect();
        write!(
            f,
            "time     {:.2} s an update ({})\n         {} of warm-up, {} in all, evaluations apart",
            time.update,
            shares.join(", "),
            lasting(time.warmup),
            lasting(time.run)
        )?;
        for warning in &self.warnings {
            write!(f, "\n\nnote     {warning}")?;
        }
        Ok(())
    }
}

fn lasting(seconds: f64) -> String {
    duration(std::time::Duration::from_secs_f64(seconds.max(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1_000, 12_345_678].map(grouped), ["0", "999", "1,000", "12,345,678"]);
        assert_eq!([512, 1_500, 1_234_000_000].map(bytes), ["512 B", "1.50 kB", "1.23 GB"]);
        assert_eq!([count(1, "prompt"), count(2_000, "prompt")], ["1 prompt", "2,000 prompts"]);
    }

    #[test]
    fn the_arithmetic_is_said_in_words() {
        let arithmetic = Arithmetic {
            groups: 4,
            group_size: 10,
            samples: 40,
            micro_batch: 16,
            chunks: 3,
            last_chunk: 8,
            steps: 4,
            stochastic_steps: 3,
            trained_steps: 2,
            critic_updates: 5,
            warmup: 100,
            updates: 1000,
            prompts: 50,
        };
        let expected = "\
batch    4 prompts x 10 samples = 40 samples an update, in 2 micro-batches of 16 and one of 8
steps    4 from noise to image, 3 with noise (the policy's actions); 2 of them drawn for each update
critic   5 updates on each rollout, with 200 real images; 100 updates of warm-up
run      1,000 updates: 4,000 groups, 40,000 samples, 5,100 critic updates";
        assert_eq!(arithmetic.to_string(), expected);
    }
}
