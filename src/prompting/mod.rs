//! What to ask the diffusion model for: prompt files with holes, class sets, which image gets which prompt; and writers of
//! prompt lists, from a grammar to language models behind a server.

pub mod client;
mod file;
pub mod gguf;
mod grammar;
mod near_duplicates;
mod template;
pub mod validate;
mod writer;

pub use file::{PromptFile, Prompts, SHIPPED};
pub use grammar::{Class, Grammar};
pub use near_duplicates::NearDuplicates;
pub use template::{ClassSet, DEFAULT_IDENTIFIER, STUFF, THINGS, fill};
pub use writer::{Answer, Request, Template, Writer, request_version};
