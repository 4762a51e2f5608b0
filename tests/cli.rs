//! The programs from end to end, on drawn photos of 48x32 pixels.

#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "support/chat.rs"]
mod chat;
#[path = "cli/clouds.rs"]
mod clouds;
#[path = "cli/dataset.rs"]
mod dataset;
#[path = "cli/demo.rs"]
mod demo;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/happy.rs"]
mod happy;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/readme.rs"]
mod readme;
#[path = "cli/report.rs"]
mod report;
#[path = "cli/resume.rs"]
mod resume;
#[path = "cli/street.rs"]
mod street;
#[path = "support/cli.rs"]
mod support;
#[path = "cli/tools.rs"]
mod tools;
