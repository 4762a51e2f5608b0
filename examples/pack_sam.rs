//! Packs a Segment Anything of `clouds pretrain-sam` into 16 bit, as the small one inside the program is kept.
//!
//! `cargo run --release --example pack_sam -- RUN/sam.safetensors nano/sam.safetensors`

use datum::base::{Error, Result};
use datum::io::weights;
use datum::systems::clouds::refiner;
use std::collections::BTreeMap;
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, file] = arguments.as_slice() else {
        return Err(Error::Usage("pack_sam FILE FILE".into()));
    };
    let source = weights::open(Path::new(from))?;
    let read = |name: String| Ok((name.clone(), source.load(&name, &candle_core::Device::Cpu)?));
    let tensors: BTreeMap<_, _> = source.shapes().into_keys().map(read).collect::<Result<_>>()?;
    weights::save(
        Path::new(file),
        &weights::halved(&tensors, Path::new(file))?,
        &BTreeMap::from([("format".into(), "pt".into())]),
    )?;
    refiner::open(file)?;
    let bytes = std::fs::metadata(file).map_err(|e| Error::io(file, e))?.len();
    println!("{file}: {:.1} MB", bytes as f64 / 1e6);
    Ok(())
}
