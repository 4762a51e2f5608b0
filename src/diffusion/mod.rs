//! What turns the networks of Stable Diffusion into a tool: folders, noise schedules, sampling, personalisation.

pub mod folder;
