//! A contact sheet of rendered street scenes, one row a look, and how long they took.
//!
//! ```text
//! cargo run --release --example street_sheet -- OUTPUT.jpg [FIRST_SCENE [SCENES [WIDTH HEIGHT]]]
//! ```

use datum::base::{Error, Result};
use datum::data::street::{Look, Scene};
use datum::io::images::RgbImage;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let output = arguments.first().ok_or_else(|| Error::Usage("expected OUTPUT.jpg or OUTPUT.png".into()))?;
    let number = |at: usize, default: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, scenes, width, height) = (number(1, 0), number(2, 4), number(3, 256), number(4, 128));
    let mut sheet = RgbImage { height: 0, width: scenes * width, pixels: Vec::new() };
    for look in Look::ALL {
        let start = Instant::now();
        let row: Vec<_> =
            (first..first + scenes).map(|index| Scene::new(0, index as u64).render((height, width), look)).collect();
        println!("{look}: {:.1} scenes/s", scenes as f64 / start.elapsed().as_secs_f64());
        row.iter().for_each(|rendered| println!("  {}", rendered.captions[0]));
        for y in 0..height {
            for rendered in &row {
                sheet.pixels.extend_from_slice(&rendered.image.pixels[y * width * 3..][..width * 3]);
            }
        }
        sheet.height += height;
    }
    let failed = |e: image::ImageError| Error::io(output, std::io::Error::other(e));
    let size = (sheet.width as u32, sheet.height as u32);
    image::save_buffer(Path::new(output), &sheet.pixels, size.0, size.1, image::ColorType::Rgb8).map_err(failed)
}
