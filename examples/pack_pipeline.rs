//! Packs a diffusers folder into one file with weights in 16 bit, as the small model inside the program is kept.
//!
//! `cargo run --release --example pack_pipeline -- RUN/model nano/stable-diffusion.safetensors`

use datum::base::{Error, Result};
use datum::diffusion::folder::PipelineFolder;
use datum::diffusion::packed;
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, file] = arguments.as_slice() else {
        return Err(Error::Usage("pack_pipeline FOLDER FILE".into()));
    };
    packed::pack(&PipelineFolder::open(Path::new(folder))?, Path::new(file))?;
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    packed::unpack(&bytes, file)?;
    println!("{file}: {:.1} MB", bytes.len() as f64 / 1e6);
    Ok(())
}
