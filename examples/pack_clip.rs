//! Packs a CLIP of `clouds pretrain` into one file with weights in 16 bit, as the small one inside the program is kept.
//!
//! `cargo run --release --example pack_clip -- RUN/clip nano/clip.safetensors`

use datum::base::{Error, Result};
use datum::systems::clouds::clip_file::ClipFile;
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, file] = arguments.as_slice() else {
        return Err(Error::Usage("pack_clip FOLDER FILE".into()));
    };
    ClipFile::open(Path::new(folder))?.pack(Path::new(file))?;
    ClipFile::open(Path::new(file))?.clip()?;
    let bytes = std::fs::metadata(file).map_err(|e| Error::io(file, e))?.len();
    println!("{file}: {:.1} MB", bytes as f64 / 1e6);
    Ok(())
}
