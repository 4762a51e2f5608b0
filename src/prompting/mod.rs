//! What to ask the diffusion model for: prompt files with holes, class sets, and which image gets which prompt.

mod file;
mod template;

pub use file::{PromptFile, Prompts, SHIPPED};
pub use template::{ClassSet, DEFAULT_IDENTIFIER, STUFF, THINGS, fill};
