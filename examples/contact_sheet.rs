//! Pictures side by side in one file, in rows, on white.
//!
//! ```text
//! cargo run --release --example contact_sheet -- OUTPUT.jpg COLUMNS PICTURE…
//! ```

use datum::base::{Error, Result};
use datum::data::stack;
use datum::io::images::{self, RgbImage};
use datum::io::thumbnail;
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [output, columns, pictures @ ..] = arguments.as_slice() else {
        return Err(Error::Usage("expected OUTPUT.jpg COLUMNS PICTURE…".into()));
    };
    let columns = columns.parse().ok().filter(|columns| *columns > 0);
    let columns: usize = columns.ok_or_else(|| Error::Usage("COLUMNS: expected a number from 1 on".into()))?;
    let pictures = pictures.iter().map(|path| images::read_rgb(Path::new(path))).collect::<Result<Vec<RgbImage>>>()?;
    let rows: Vec<Vec<RgbImage>> = pictures.chunks(columns).map(<[RgbImage]>::to_vec).collect();
    let bytes = thumbnail::jpeg(&stack(&rows), 90)?;
    std::fs::write(output, bytes).map_err(|e| Error::io(output, e))
}
