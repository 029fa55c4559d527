//! Prompts to conditioning.
