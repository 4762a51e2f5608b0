//! Reading and writing pictures and label files. Pixels are row-major, channels interleaved, RGB; the camera's EXIF
//! rotation is ignored so that pictures and labels stay aligned.

use crate::base::{Error, Result};
use crate::io::atomic;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::ffi::OsStr;
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
    let failed = |e| unopened(path, e);
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
    /// One error per file that is named like a picture and is none, and per link that leads nowhere or folder that can't be
    /// listed. Report them, see [`unreadable_line`].
    pub unreadable: Vec<Error>,
}

/// Finds the pictures below `folder`, recursively and sorted; hidden files and folders are left out.
///
/// # Errors
/// [`Error::Io`] if the folder can't be listed, [`Error::Data`] if it holds no readable picture.
pub fn scan(folder: &Path) -> Result<Scan> {
    let Entries { files, lost } = walk(folder)?;
    let mut found = Scan { images: Vec::new(), unreadable: lost.into_iter().map(|(_, error)| error).collect() };
    for path in files.into_iter().filter(|path| is_image(path)) {
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

/// Every visible file below `folder`, sorted. Links that are named like pictures are among them even if they lead nowhere:
/// whoever reads them says so, and counts them.
///
/// # Errors
/// [`Error::Io`] for folders that can't be listed, [`Error::Data`] for links that lead nowhere and may have been folders.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let Entries { mut files, lost } = walk(folder)?;
    for (path, error) in lost {
        // Without a folder of pictures there would be fewer than the user believes.
        if !is_image(&path) {
            return Err(error);
        }
        files.push(path);
    }
    files.sort();
    Ok(files)
}

/// What lies below a folder, without what is hidden.
#[derive(Default)]
struct Entries {
    /// Files, sorted.
    files: Vec<PathBuf>,
    /// What could not be followed or listed, and why.
    lost: Vec<(PathBuf, Error)>,
}

fn walk(folder: &Path) -> Result<Entries> {
    if !folder.is_dir() && folder.exists() {
        return Err(Error::data(folder, "a folder", "a file", "name the folder that holds the images"));
    }
    let hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
    let visible = |entry: &walkdir::DirEntry| entry.depth() == 0 || !hidden(entry.file_name());
    let mut found = Entries::default();
    for entry in walkdir::WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter().filter_entry(visible) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => found.files.push(entry.into_path()),
            Ok(_) => {}
            Err(e) => {
                let (depth, path) = (e.depth(), e.path().unwrap_or(folder).to_path_buf());
                let is_hidden = depth > 0 && e.path().and_then(Path::file_name).is_some_and(hidden);
                match unlisted(&path, e) {
                    error if depth == 0 => return Err(error),
                    error if !is_hidden => found.lost.push((path, error)),
                    _ => {}
                }
            }
        }
    }
    found.files.sort();
    Ok(found)
}

/// Why an entry of a folder is none.
fn unlisted(path: &Path, error: walkdir::Error) -> Error {
    let link = |found: &str, next: &str| Error::data(path, "a file or folder", found, next);
    match error.into_io_error() {
        Some(e) if e.kind() == std::io::ErrorKind::NotFound && path.is_symlink() => {
            link("a link that leads nowhere", "restore what it points to, or remove it")
        }
        Some(e) => Error::io(path, e),
        None => link("a link to a folder that it lies in", "remove it"),
    }
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
    std::fs::read(path).map_err(|e| unopened(path, e))
}

/// Data sets know pictures by text. A name that is none reaches here with stand-ins for what is not UTF-8, and is not found.
fn unopened(path: &Path, error: std::io::Error) -> Error {
    let replaced = path.to_str().is_some_and(|text| text.contains(char::REPLACEMENT_CHARACTER));
    if replaced && error.kind() == std::io::ErrorKind::NotFound {
        return Error::data(path, "an image whose path is UTF-8", "a path in another encoding", "rename the file or its folder");
    }
    Error::io(path, error)
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_that_lead_nowhere_are_left_out_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write_png(&at("a.png"), &RgbImage { height: 1, width: 1, pixels: vec![1, 2, 3] }, &[]).unwrap();
        symlink("gone.png", at("b.png")).unwrap();
        symlink("gone", at(".#lock")).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [at("a.png"), at("b.png")]);
        symlink("gone", at("more")).unwrap();
        symlink(".", at("self")).unwrap();
        let error = list(dir.path()).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("a link that leads nowhere"), "{error}");
        let found = scan(dir.path()).unwrap();
        assert_eq!(found.images, [at("a.png")]);
        let said: Vec<String> = found.unreadable.iter().map(ToString::to_string).collect();
        for (line, name) in said.iter().zip(["b.png", "more", "self"]) {
            assert!(line.contains(name) && line.contains("next: "), "{line}");
        }
        assert_eq!(said.len(), 3);
        assert!(scan(&at("more")).is_err());
    }

    #[test]
    fn a_name_that_is_no_text_is_told_from_a_missing_file() {
        for error in [inspect(Path::new("caf\u{fffd}.png")).unwrap_err(), read_rgb(Path::new("caf\u{fffd}.png")).unwrap_err()] {
            assert!(error.exit_code() == 3 && error.to_string().contains("UTF-8"), "{error}");
        }
        assert!(inspect(Path::new("cafe.png")).unwrap_err().to_string().contains("check the path"));
    }
}
