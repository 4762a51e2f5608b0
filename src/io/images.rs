//! Reading and writing pictures and label files. Pixels are row-major, channels interleaved, RGB; the camera's EXIF
//! rotation is ignored so that pictures and labels stay aligned.

use crate::base::{Error, Result};
use crate::io::atomic;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// More pixels than this are refused before memory is asked for.
const MAX_PIXELS: u64 = 1 << 28;
/// File name endings that [`scan`] takes for pictures.
pub const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// An 8-bit RGB picture, `pixels` (H, W, 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `height · width · 3` values.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// The values as numbers of 0…255, (H, W, 3).
    pub fn floats(&self) -> Vec<f32> {
        self.pixels.iter().map(|&pixel| f32::from(pixel)).collect()
    }
}

impl RgbImage {
    /// Refuses pictures smaller than `size` (height, width); `purpose` ends the sentence "smaller than … needs".
    ///
    /// # Errors
    /// [`Error::Data`] with `path` and both sizes.
    pub fn at_least(&self, size: (usize, usize), purpose: &str, path: &Path) -> Result<()> {
        if self.height >= size.0 && self.width >= size.1 {
            return Ok(());
        }
        Err(Error::data(
            path,
            format!("an image of at least {}x{} pixels (width x height) for {purpose}", size.1, size.0),
            format!("{}x{}", self.width, self.height),
            "use a larger image",
        ))
    }
}

/// One number per pixel as the file holds it, `pixels` (H, W): palette indices, gray values or a class channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrayImage {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `height · width` values.
    pub pixels: Vec<u16>,
}

/// Reads a PNG, JPEG or WebP file as 8-bit RGB: gray is repeated, palettes are looked up, alpha is dropped, of 16 bits
/// the upper 8 are kept, CMYK is converted.
///
/// # Errors
/// [`Error::Io`] for a missing file, [`Error::Data`] for one that is no whole image or has more than 2²⁸ pixels.
pub fn read_rgb(path: &Path) -> Result<RgbImage> {
    let bytes = read_bytes(path)?;
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(|e| Error::io(path, e))?;
    let format = reader.format();
    let decoder = reader.into_decoder().map_err(|e| undecodable(path, e))?;
    check_size(path, decoder.dimensions())?;
    if format == Some(ImageFormat::Jpeg) && !jpeg_ends(&bytes) {
        return Err(truncated(path));
    }
    let decoded = DynamicImage::from_decoder(decoder).map_err(|e| undecodable(path, e))?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let pixels = match decoded {
        // The upper byte, as PIL and OpenCV do; the crate's own conversion rounds.
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => decoded.into_rgb16().into_raw().into_iter().map(|value| (value >> 8) as u8).collect(),
        other => other.into_rgb8().into_raw(),
    };
    Ok(RgbImage { height, width, pixels })
}

/// Height and width from the header, after a check that the file has its end; the pixels are not decoded.
///
/// # Errors
/// As [`read_rgb`].
pub fn inspect(path: &Path) -> Result<(usize, usize)> {
    let failed = |e| Error::io(path, e);
    let reader = ImageReader::open(path).map_err(failed)?.with_guessed_format().map_err(failed)?;
    let format = reader.format();
    let (width, height) = reader.into_dimensions().map_err(|e| undecodable(path, e))?;
    check_size(path, (width, height))?;
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(1 << 16))).map_err(failed)?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).map_err(failed)?;
    let whole = match format {
        Some(ImageFormat::Jpeg) => jpeg_ends(&tail),
        Some(ImageFormat::Png) => tail.windows(4).any(|four| four == b"IEND"),
        _ => true,
    };
    if whole { Ok((height as usize, width as usize)) } else { Err(truncated(path)) }
}

/// Reads a label PNG without changing its numbers: palette indices, gray of up to 16 bits, or the red channel of a
/// picture whose red holds the class (the layout of SYNTHIA).
///
/// # Errors
/// [`Error::Io`] for a missing file; [`Error::Data`] for other formats, broken files and colour pictures.
pub fn read_label(path: &Path) -> Result<GrayImage> {
    let expected = "a PNG with one class id per pixel (palette index, gray, or class in the red channel)";
    let bytes = read_bytes(path)?;
    if let Ok(format @ (ImageFormat::Jpeg | ImageFormat::WebP)) = image::guess_format(&bytes) {
        let next = "save label maps as PNG; lossy formats change ids";
        return Err(Error::data(path, expected, format!("a {format:?} file"), next));
    }
    let failed = |e: png::DecodingError| broken(path, expected, &e.to_string());
    let mut decoder = png::Decoder::new(Cursor::new(&bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(failed)?;
    check_size(path, (header.width, header.height))?;
    let mut reader = decoder.read_info().map_err(failed)?;
    let size = reader.output_buffer_size().ok_or_else(|| broken(path, expected, "impossible dimensions"))?;
    let mut raw = vec![0; size];
    let frame = reader.next_frame(&mut raw).map_err(failed)?;
    let (height, width) = (frame.height as usize, frame.width as usize);
    let samples = frame.color_type.samples();
    let values: Vec<u16> = raw[..frame.buffer_size()]
        .chunks_exact(frame.line_size)
        .flat_map(|row| unpack(row, frame.bit_depth, width * samples))
        .collect();
    if samples >= 3 && frame.bit_depth == png::BitDepth::Eight && is_coloured(&values, samples) {
        return Err(Error::data(
            path,
            expected,
            "a colour picture",
            "name the id files in the dataset's `labels`, not their coloured versions",
        ));
    }
    Ok(GrayImage { height, width, pixels: values.into_iter().step_by(samples).collect() })
}

/// One row of `count` samples of 1, 2, 4, 8 or 16 bits.
fn unpack(row: &[u8], depth: png::BitDepth, count: usize) -> Vec<u16> {
    match depth as usize {
        16 => row.chunks_exact(2).map(|two| u16::from_be_bytes([two[0], two[1]])).collect(),
        bits => {
            let (per_byte, mask) = (8 / bits, (1u16 << bits) - 1);
            let sample = |i: usize| (row[i / per_byte] as u16 >> (8 - bits * (i % per_byte + 1))) & mask;
            (0..count).map(sample).collect()
        }
    }
}

/// Red holds ids if all channels agree or blue is empty (green may count instances); anything else shows colours.
fn is_coloured(values: &[u16], samples: usize) -> bool {
    values.chunks_exact(samples).any(|p| p[2] != 0 && (p[0] != p[1] || p[0] != p[2]))
}

/// Writes an RGB PNG, whole or not at all. `text` holds (keyword, text) pairs that go into the file's text chunks.
///
/// # Errors
/// [`Error::Io`] when the file can't be written.
pub fn write_png(path: &Path, image: &RgbImage, text: &[(String, String)]) -> Result<()> {
    let size = (image.height, image.width);
    write(path, size, png::ColorType::Rgb, png::BitDepth::Eight, &image.pixels, None, text, None)
}

/// [`write_png`] for many noisy pictures: a tenth of the time or less, files a few percent larger.
///
/// # Errors
/// As [`write_png`].
pub fn write_png_fast(path: &Path, image: &RgbImage) -> Result<()> {
    let size = (image.height, image.width);
    write(path, size, png::ColorType::Rgb, png::BitDepth::Eight, &image.pixels, None, &[], Some(png::Compression::Fast))
}

/// Writes an 8-bit gray PNG of `pixels` (H, W); `size` is (height, width).
///
/// # Errors
/// As [`write_png`].
pub fn write_gray_png(path: &Path, size: (usize, usize), pixels: &[u8], text: &[(String, String)]) -> Result<()> {
    write(path, size, png::ColorType::Grayscale, png::BitDepth::Eight, pixels, None, text, None)
}

/// Writes a 16-bit gray PNG of `image`.
///
/// # Errors
/// As [`write_png`].
pub fn write_gray16_png(path: &Path, image: &GrayImage, text: &[(String, String)]) -> Result<()> {
    let bytes: Vec<u8> = image.pixels.iter().flat_map(|value| value.to_be_bytes()).collect();
    let size = (image.height, image.width);
    write(path, size, png::ColorType::Grayscale, png::BitDepth::Sixteen, &bytes, None, text, None)
}

/// Writes an 8-bit palette PNG: `indices` (H, W) stay readable as numbers, viewers show `palette[index]`, black beyond it.
///
/// # Errors
/// As [`write_png`].
pub fn write_palette_png(
    path: &Path,
    size: (usize, usize),
    indices: &[u8],
    palette: &[[u8; 3]],
    text: &[(String, String)],
) -> Result<()> {
    let mut table = palette.concat();
    table.resize(256 * 3, 0);
    write(path, size, png::ColorType::Indexed, png::BitDepth::Eight, indices, Some(table), text, None)
}

fn write(
    path: &Path,
    (height, width): (usize, usize),
    color: png::ColorType,
    depth: png::BitDepth,
    bytes: &[u8],
    palette: Option<Vec<u8>>,
    text: &[(String, String)],
    compression: Option<png::Compression>,
) -> Result<()> {
    let encode = || -> std::result::Result<Vec<u8>, png::EncodingError> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if let Some(compression) = compression {
            encoder.set_compression(compression);
        }
        if let Some(table) = palette {
            encoder.set_palette(table);
        }
        for (keyword, value) in text {
            // Plain chunks are Latin-1; every reader agrees only on their ASCII half.
            match value.is_ascii() {
                true => encoder.add_text_chunk(keyword.clone(), value.clone())?,
                false => encoder.add_itxt_chunk(keyword.clone(), value.clone())?,
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(bytes)?;
        writer.finish()?;
        Ok(file)
    };
    let file = encode().map_err(|e| Error::io(path, std::io::Error::other(e)))?;
    atomic::write(path, &file)
}

/// The (keyword, text) pairs stored in a PNG.
///
/// # Errors
/// [`Error::Io`] for a missing file, [`Error::Data`] for one that is no PNG.
pub fn read_png_text(path: &Path) -> Result<Vec<(String, String)>> {
    let failed = |e: png::DecodingError| broken(path, "a PNG file", &e.to_string());
    let file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
    let reader = png::Decoder::new(file).read_info().map_err(failed)?;
    let info = reader.info();
    let mut pairs: Vec<_> =
        info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
    for chunk in &info.compressed_latin1_text {
        pairs.push((chunk.keyword.clone(), chunk.get_text().map_err(failed)?));
    }
    for chunk in &info.utf8_text {
        pairs.push((chunk.keyword.clone(), chunk.get_text().map_err(failed)?));
    }
    Ok(pairs)
}

/// The pictures of a folder.
#[derive(Debug, Default)]
pub struct Scan {
    /// Files with a readable header and an end, sorted.
    pub images: Vec<PathBuf>,
    /// One error per file that is named like a picture and is none. Report them, see [`unreadable_line`].
    pub unreadable: Vec<Error>,
}

/// Finds the pictures below `folder`, recursively and sorted; hidden files and folders are left out.
///
/// # Errors
/// [`Error::Io`] if the folder can't be listed, [`Error::Data`] if it holds no readable picture.
pub fn scan(folder: &Path) -> Result<Scan> {
    let mut found = Scan::default();
    for path in list(folder)?.into_iter().filter(|path| is_image(path)) {
        match inspect(&path) {
            Ok(_) => found.images.push(path),
            Err(error) => found.unreadable.push(error),
        }
    }
    if found.images.is_empty() {
        let count = found.unreadable.len();
        let found = if count == 0 { "no image".into() } else { format!("no readable one among {count}") };
        let next = "check the path; a folder is searched with its sub-folders";
        return Err(Error::data(folder, "a folder with images (png, jpg, jpeg, webp)", found, next));
    }
    Ok(found)
}

/// Every visible file below `folder`, sorted.
///
/// # Errors
/// [`Error::Io`] for folders that can't be listed.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() && folder.exists() {
        return Err(Error::data(folder, "a folder", "a file", "name the folder that holds the images"));
    }
    let visible = |entry: &walkdir::DirEntry| entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.');
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter().filter_entry(visible) {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(folder).to_path_buf();
            Error::io(path, e.into_io_error().unwrap_or_else(|| std::io::Error::other("a loop of links")))
        })?;
        if entry.file_type().is_file() {
            files.push(entry.into_path());
        }
    }
    files.sort();
    Ok(files)
}

/// True for names that end like a picture.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// The warning about pictures that were left out, e.g. `2 of 300 images can't be read and are left out: …`.
pub fn unreadable_line(unreadable: &[Error], total: usize) -> Option<String> {
    let first = unreadable.first()?;
    Some(format!("{} of {total} images can't be read and are left out; the first: {first}", unreadable.len()))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    if path.is_dir() {
        return Err(Error::data(path, "an image file", "a folder", "name a file in it"));
    }
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

fn check_size(path: &Path, (width, height): (u32, u32)) -> Result<()> {
    if u64::from(width) * u64::from(height) <= MAX_PIXELS {
        return Ok(());
    }
    let expected = format!("an image of at most {MAX_PIXELS} pixels");
    Err(Error::data(path, expected, format!("a header that says {width}x{height}"), "scale the image down"))
}

/// The decoder fills up what is missing with gray; the end marker can't appear inside picture data.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|two| two == marker);
    last([0xff, 0xd9]) > last([0xff, 0xda])
}

const PICTURE: &str = "a PNG, JPEG or WebP image";

fn truncated(path: &Path) -> Error {
    broken(path, PICTURE, "the end of the file is missing")
}

fn undecodable(path: &Path, error: image::ImageError) -> Error {
    let (expected, reason) = match &error {
        image::ImageError::Unsupported(_) => (PICTURE, format!("another or an unsupported format ({error})")),
        other => (PICTURE, other.to_string()),
    };
    broken(path, expected, &reason)
}

fn broken(path: &Path, expected: &str, reason: &str) -> Error {
    let empty = std::fs::metadata(path).is_ok_and(|m| m.len() == 0);
    let found = if empty { "an empty file".into() } else { format!("one that can't be decoded: {reason}") };
    Error::data(path, expected, found, "copy or export the file again, or remove it")
}
