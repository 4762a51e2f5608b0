//! Time and memory of Segment Anything's decoder at its published size, by the number of prompts asked for at once.
//!
//! ```text
//! cargo run --release --example sam_prompts -- [PROMPTS...]
//! ```

use candle_core::{DType, Device, Tensor};
use datum::base::{Result, Rng, heap};
use datum::models::sam::{Prompts, Sam, SamConfig};
use datum::nn::Builder;
use std::time::Instant;

fn main() -> Result<()> {
    heap::keep_pages();
    let mut counts: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![1, 16, 32, 64, 128, 256, 512];
    }
    let sam = Sam::new(&SamConfig::mobile(), &Builder::random(0).frozen())?;
    let rng = &mut Rng::stream(0, "prompts", &[]);
    let embedding = rng.normal_tensor(&[1, 256, 64, 64], &Device::Cpu)?;
    println!("prompts  ms each  peak MiB");
    println!("{:7}  {:7}  {:8}", 0, "", heap::peak_memory().unwrap_or(0) >> 20);
    for count in counts {
        let places = ((rng.normal_tensor(&[count, 5, 2], &Device::Cpu)? * 200.0)? + 512.0)?;
        let labels = Tensor::ones((count, 5), DType::F32, &Device::Cpu)?;
        let prompts = Prompts { points: Some((places, labels)), ..Prompts::default() };
        let start = Instant::now();
        sam.decode(&embedding, &prompts, true)?;
        let each = start.elapsed().as_secs_f64() * 1e3 / count as f64;
        println!("{count:7}  {each:7.1}  {:8}", heap::peak_memory().unwrap_or(0) >> 20);
    }
    Ok(())
}
