//! How a picture was made, inside the picture: the `parameters` text that other tools read, and our own `datum` JSON.

use super::manifest::GenerationFacts;
use crate::base::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Keyword of the text that stable-diffusion tools read.
pub const PARAMETERS: &str = "parameters";
/// Keyword of our JSON: all [`GenerationFacts`].
pub const DATUM: &str = "datum";

/// Writes an RGB picture with its facts, atomically. `sampler` is the method's name as other tools spell it, e.g. `PLMS`.
///
/// # Shapes
/// `pixels` height · width · 3 bytes, row by row.
///
/// # Errors
/// A wrong number of pixels, or a file that cannot be written.
pub fn write(path: &Path, pixels: &[u8], facts: &GenerationFacts, sampler: &str) -> Result<()> {
    let json = serde_json::to_string(facts).map_err(|e| Error::io(path, e.into()))?;
    let texts = [(PARAMETERS, parameters(facts, sampler)), (DATUM, json)];
    let bytes = encode(pixels, facts.height, facts.width, &texts).map_err(|e| Error::io(path, e.into()))?;
    super::atomic::write(path, &bytes)
}

/// The facts that [`write()`] stored in a picture; `None` for a picture from elsewhere.
///
/// # Errors
/// A file that is not a PNG picture, or facts that do not parse.
pub fn read_facts(path: &Path) -> Result<Option<GenerationFacts>> {
    let texts = read_texts(path)?;
    let Some(json) = texts.get(DATUM) else { return Ok(None) };
    let parsed = serde_json::from_str(json);
    parsed.map(Some).map_err(|e| Error::data(path, "our facts in the `datum` text", e.to_string(), "generate the picture again"))
}

/// All texts of a picture by keyword.
///
/// # Errors
/// A missing file, or one that is not a PNG picture.
pub fn read_texts(path: &Path) -> Result<BTreeMap<String, String>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    decode_texts(std::io::BufReader::new(file))
        .map_err(|e| Error::data(path, "a PNG picture", e.to_string(), "check that the file is a whole PNG"))
}

fn decode_texts(input: std::io::BufReader<std::fs::File>) -> std::result::Result<BTreeMap<String, String>, png::DecodingError> {
    let mut reader = png::Decoder::new(input).read_info()?;
    reader.finish()?; // texts may follow the pixels
    let info = reader.info();
    let mut texts = BTreeMap::new();
    for chunk in &info.uncompressed_latin1_text {
        texts.insert(chunk.keyword.clone(), chunk.text.clone());
    }
    for chunk in &info.compressed_latin1_text {
        texts.insert(chunk.keyword.clone(), chunk.get_text()?);
    }
    for chunk in &info.utf8_text {
        texts.insert(chunk.keyword.clone(), chunk.get_text()?);
    }
    Ok(texts)
}

fn encode(
    pixels: &[u8],
    height: usize,
    width: usize,
    texts: &[(&str, String)],
) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(0); // the encoder refuses 0
    let mut encoder = png::Encoder::new(&mut bytes, side(width), side(height));
    encoder.set_color(png::ColorType::Rgb);
    for (keyword, text) in texts {
        // The plain text chunk is Latin-1 only.
        if text.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk(keyword.to_string(), text.clone())?;
        } else {
            encoder.add_itxt_chunk(keyword.to_string(), text.clone())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// The text other tools expect: prompt, negative prompt, then one line of settings.
fn parameters(facts: &GenerationFacts, sampler: &str) -> String {
    let GenerationFacts { prompt, negative_prompt, steps, guidance_scale, seed, width, height, model_hash, .. } = facts;
    let negative = if negative_prompt.is_empty() { String::new() } else { format!("\nNegative prompt: {negative_prompt}") };
    format!(
        "{prompt}{negative}\nSteps: {steps}, Sampler: {sampler}, CFG scale: {guidance_scale}, Seed: {seed}, \
         Size: {width}x{height}, Model hash: {model_hash}"
    )
}

/// A `parameters` text taken apart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters {
    /// What the picture was to show.
    pub prompt: String,
    /// What it was not to show.
    pub negative_prompt: String,
    /// The settings in their order, e.g. `("Seed", "7")`.
    pub settings: Vec<(String, String)>,
}

impl Parameters {
    /// Takes a `parameters` text apart. Texts of other tools may lack any part.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let (body, last) = match text.rsplit_once('\n') {
            Some((body, last)) if last.trim_start().starts_with("Steps:") => (body, last),
            None if text.starts_with("Steps:") => ("", text),
            _ => (text, ""),
        };
        let (prompt, negative) = match body.strip_prefix("Negative prompt:") {
            Some(negative) => ("", negative),
            None => body.split_once("\nNegative prompt:").unwrap_or((body, "")),
        };
        let settings = split_outside_quotes(last).into_iter().filter_map(|part| {
            let (key, value) = part.split_once(':')?;
            let value = value.trim();
            let unquoted = serde_json::from_str::<String>(value).unwrap_or_else(|_| value.into());
            Some((key.trim().to_string(), unquoted))
        });
        Self { prompt: prompt.trim().into(), negative_prompt: negative.trim().into(), settings: settings.collect() }
    }

    /// One setting by name.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Parts between commas; values with commas of their own are JSON strings.
fn split_outside_quotes(line: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in line.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&line[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&line[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::manifest::tests::facts;

    #[test]
    fn facts_survive_the_picture() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("im_0_p0.png");
        for (prompt, negative) in [("a photo of sks cars", "rain,\nsnow"), ("naïve café", ""), ("写真 of 車", "夜")] {
            let (prompt, negative_prompt) = (prompt.to_string(), negative.to_string());
            let facts = GenerationFacts { prompt, negative_prompt, height: 2, width: 3, ..facts(4) };
            write(&path, &(0..18).collect::<Vec<u8>>(), &facts, "PLMS").unwrap();
            assert_eq!(read_facts(&path).unwrap().unwrap(), facts);
            let parameters = Parameters::parse(&read_texts(&path).unwrap()[PARAMETERS]);
            assert_eq!(parameters.prompt, facts.prompt);
            assert_eq!(parameters.negative_prompt, negative);
            for (name, value) in [("Steps", "50"), ("Sampler", "PLMS"), ("CFG scale", "7.5"), ("Seed", "11"), ("Size", "3x2")] {
                assert_eq!(parameters.setting(name), Some(value));
            }
            let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap())).read_info().unwrap();
            let mut pixels = vec![0; 18];
            reader.next_frame(&mut pixels).unwrap();
            assert_eq!(pixels, (0..18).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn texts_of_other_tools_are_understood() {
        let text = "a street, (night:1.2)\nsecond line\nNegative prompt: blurry, dark\nSteps: 20, Sampler: DPM++ 2M, \
                    Model: \"a, b: c\", Seed: 5";
        let parameters = Parameters::parse(text);
        assert_eq!(parameters.prompt, "a street, (night:1.2)\nsecond line");
        assert_eq!(parameters.negative_prompt, "blurry, dark");
        assert_eq!(parameters.setting("Model"), Some("a, b: c"));
        assert_eq!(parameters.setting("Seed"), Some("5"));
        assert_eq!(Parameters::parse("only a prompt").prompt, "only a prompt");
        assert_eq!(Parameters::parse(""), Parameters::default());
    }

    #[test]
    fn other_files_are_refused_and_plain_pictures_have_no_facts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        std::fs::write(&path, b"not a picture").unwrap();
        assert_eq!(read_texts(&path).unwrap_err().exit_code(), 3);
        std::fs::write(&path, encode(&[0; 12], 2, 2, &[]).unwrap()).unwrap();
        assert_eq!(read_facts(&path).unwrap(), None);
        assert!(write(&path, &[0; 5], &GenerationFacts { height: 2, width: 2, ..facts(0) }, "PLMS").is_err());
    }
}
