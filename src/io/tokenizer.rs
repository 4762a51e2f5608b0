//! The prompt tokenizer of CLIP: byte-level BPE, lower case, `</w>` at the end of words. Reads the files of old and new
//! Python libraries, writes a folder that both read, and trains a small vocabulary for models of one's own.

use crate::base::{Error, Result};
use crate::io::atomic;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const WORD_END: &str = "</w>";
/// Prompt length when the folder names none.
const DEFAULT_LENGTH: usize = 77;

/// What a tokenizer is made of, apart from CLIP's fixed rules.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    vocab: BTreeMap<String, u32>,
    /// In the order they are applied.
    merges: Vec<(String, String)>,
    /// Tokens added behind the vocabulary, e.g. identifiers of a textual inversion.
    added: BTreeMap<String, u32>,
    pad_token: String,
    length: usize,
}

/// Turns prompts into token ids of fixed length.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    parts: Parts,
    model: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
}

impl Tokenizer {
    /// Reads `folder`: `tokenizer.json`, or `vocab.json` with `merges.txt` (and `added_tokens.json`); padding token and length
    /// from `tokenizer_config.json` and `special_tokens_map.json` where they exist, else the end token and 77.
    ///
    /// # Errors
    /// Missing or foreign files.
    pub fn open(folder: &Path) -> Result<Self> {
        let json = folder.join("tokenizer.json");
        let mut parts = match json.is_file() {
            true => Parts::from_tokenizer_json(&json, &read_object(&json)?)?,
            false => Parts::from_vocab_files(folder)?,
        };
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if path.is_file() {
                parts.read_settings(&read_object(&path)?);
            }
        }
        Self::new(parts, folder)
    }

    /// From the texts of `tokenizer.json` and `tokenizer_config.json`; `origin` is for messages.
    ///
    /// # Errors
    /// Foreign texts.
    pub fn from_json(tokenizer: &str, settings: &str, origin: &Path) -> Result<Self> {
        let mut parts = Parts::from_tokenizer_json(origin, &parse_object(origin, tokenizer.as_bytes())?)?;
        parts.read_settings(&parse_object(origin, settings.as_bytes())?);
        Self::new(parts, origin)
    }

    /// The texts of `tokenizer.json` and `tokenizer_config.json`.
    pub fn to_json(&self) -> (String, String) {
        let parts = &self.parts;
        let config = json!({
            "add_prefix_space": false, "bos_token": START, "do_lower_case": true, "eos_token": END, "errors": "replace",
            "model_max_length": parts.length, "pad_token": parts.pad_token, "tokenizer_class": "CLIPTokenizer", "unk_token": END,
        });
        (format!("{:#}", parts.to_json(self.start, self.end)), format!("{config:#}\n"))
    }

    /// Learns a vocabulary of at most `vocab_size` entries from `texts`: all 256 bytes, inside and at the end of words, the
    /// pairs that are merged most often (ties: smaller ids first), and the start and end token. Prompts are padded to `length`.
    ///
    /// # Errors
    /// [`Error::Usage`] for fewer than 514 entries or a length below 2.
    pub fn train<S: AsRef<str>>(texts: &[S], vocab_size: usize, length: usize) -> Result<Self> {
        let alphabet = byte_alphabet();
        let fixed = 2 * alphabet.len() + 2;
        if vocab_size < fixed || length < 2 {
            return Err(Error::Usage(format!(
                "a vocabulary needs at least {fixed} entries and prompts 2 tokens, {vocab_size} and {length} were asked for"
            )));
        }
        let symbols: Vec<String> =
            alphabet.iter().map(char::to_string).chain(alphabet.iter().map(|c| format!("{c}{WORD_END}"))).collect();
        let parts = Parts { vocab: BTreeMap::new(), merges: vec![], added: BTreeMap::new(), pad_token: END.into(), length };
        let bare = Self::new(parts.clone().with_symbols(&symbols), Path::new("tokenizer"))?;
        let words = bare.count_words(texts)?;
        let (symbols, merges) = learn_merges(symbols, &words, vocab_size - fixed);
        Self::new(Parts { merges, ..parts }.with_symbols(&symbols), Path::new("tokenizer"))
    }

    fn new(parts: Parts, origin: &Path) -> Result<Self> {
        let id = |token: &str| {
            parts.vocab.get(token).or_else(|| parts.added.get(token)).copied().ok_or_else(|| {
                Error::data(origin, format!("the token `{token}` in the vocabulary"), "none", "use the tokenizer of the model")
            })
        };
        let (start, end, pad) = (id(START)?, id(END)?, id(&parts.pad_token)?);
        let model = tokenizers::Tokenizer::from_bytes(parts.to_json(start, end).to_string()).map_err(|e| {
            Error::data(origin, "a CLIP vocabulary and merges", e.to_string(), "copy or download the files again")
        })?;
        Ok(Self { parts, model, start, end, pad })
    }

    /// Ids of `text` between start and end token, cut or padded to [`Tokenizer::length`].
    ///
    /// # Errors
    /// None in practice: text that the byte-level rules cannot split.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.model.encode_fast(text, false).map_err(|e| Error::Usage(format!("cannot tokenize `{text}`: {e}")))?;
        let body = encoding.get_ids().iter().copied().take(self.parts.length - 2);
        let mut ids: Vec<u32> = std::iter::once(self.start).chain(body).chain([self.end]).collect();
        ids.resize(self.parts.length, self.pad);
        Ok(ids)
    }

    /// Tokens of every encoded prompt, start, end and padding included.
    pub fn length(&self) -> usize {
        self.parts.length
    }

    /// One more than the greatest id: the least `vocab_size` a text encoder needs.
    pub fn vocab_size(&self) -> usize {
        self.parts.vocab.values().chain(self.parts.added.values()).max().map_or(0, |id| *id as usize + 1)
    }

    /// Ids of the start, end and padding token.
    pub fn special_ids(&self) -> (u32, u32, u32) {
        (self.start, self.end, self.pad)
    }

    /// Writes `vocab.json`, `merges.txt` and the two settings files for old Python libraries, `tokenizer.json` for new ones.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let parts = &self.parts;
        let by_id: BTreeMap<u32, &String> = parts.vocab.iter().map(|(token, id)| (*id, token)).collect();
        let vocab: Map<String, Value> = by_id.into_iter().map(|(id, token)| (token.clone(), id.into())).collect();
        let merges: String = parts.merges.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
        let specials = json!({"bos_token": START, "eos_token": END, "pad_token": parts.pad_token, "unk_token": END});
        let (tokenizer, config) = self.to_json();
        let write = |name: &str, text: String| atomic::write(&folder.join(name), text.as_bytes());
        write("vocab.json", Value::Object(vocab).to_string())?;
        write("merges.txt", format!("#version: 0.2\n{merges}"))?;
        write("tokenizer.json", tokenizer)?;
        write("special_tokens_map.json", format!("{specials:#}\n"))?;
        write("tokenizer_config.json", config)?;
        match parts.added.is_empty() {
            true => Ok(()),
            false => write("added_tokens.json", format!("{:#}\n", json!(parts.added))),
        }
    }

    /// How often each word (in byte symbols) occurs in `texts`.
    fn count_words<S: AsRef<str>>(&self, texts: &[S]) -> Result<BTreeMap<String, usize>> {
        let failed = |e: tokenizers::Error| Error::Usage(format!("cannot split a training text: {e}"));
        let mut counts = BTreeMap::new();
        for text in texts {
            let mut normalized = NormalizedString::from(text.as_ref());
            if let Some(normalizer) = self.model.get_normalizer() {
                normalizer.normalize(&mut normalized).map_err(failed)?;
            }
            let mut split = PreTokenizedString::from(normalized);
            if let Some(splitter) = self.model.get_pre_tokenizer() {
                splitter.pre_tokenize(&mut split).map_err(failed)?;
            }
            for (word, _, _) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
                *counts.entry(word.to_string()).or_insert(0) += 1;
            }
        }
        Ok(counts)
    }
}

impl Parts {
    /// The vocabulary: `symbols` in order, then start and end token.
    fn with_symbols(mut self, symbols: &[String]) -> Self {
        self.vocab = symbols.iter().cloned().chain([START.into(), END.into()]).zip(0..).collect();
        self
    }

    fn from_vocab_files(folder: &Path) -> Result<Self> {
        let vocab = ids(&folder.join("vocab.json"), &read_object(&folder.join("vocab.json"))?)?;
        let path = folder.join("merges.txt");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let lines =
            text.lines().enumerate().filter(|(i, line)| !(line.trim().is_empty() || *i == 0 && line.starts_with("#version")));
        let merges = lines.map(|(_, line)| pair(&path, line)).collect::<Result<_>>()?;
        let extra = folder.join("added_tokens.json");
        let added = if extra.is_file() { ids(&extra, &read_object(&extra)?)? } else { BTreeMap::new() };
        Ok(Self { vocab, merges, added, pad_token: END.into(), length: DEFAULT_LENGTH })
    }

    fn from_tokenizer_json(path: &Path, file: &Map<String, Value>) -> Result<Self> {
        let model = &file.get("model").cloned().unwrap_or_default();
        let foreign =
            |what: &str| Error::data(path, "a CLIP tokenizer (BPE with `</w>`)", what, "use the tokenizer of the model");
        if model["end_of_word_suffix"].as_str() != Some(WORD_END) {
            return Err(foreign("another kind of tokenizer"));
        }
        let vocab = ids(path, model["vocab"].as_object().ok_or_else(|| foreign("no vocabulary"))?)?;
        let merge = |merge: &Value| match merge {
            Value::String(line) => pair(path, line),
            other => pair(path, &format!("{} {}", other[0].as_str().unwrap_or(""), other[1].as_str().unwrap_or(""))),
        };
        let merges = model["merges"].as_array().ok_or_else(|| foreign("no merges"))?;
        let merges = merges.iter().map(merge).collect::<Result<_>>()?;
        let mut added = BTreeMap::new();
        for token in file.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            if let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64())
                && !vocab.contains_key(content)
            {
                added.insert(content.into(), id as u32);
            }
        }
        Ok(Self { vocab, merges, added, pad_token: END.into(), length: DEFAULT_LENGTH })
    }

    /// Padding token and length; lengths without meaning (transformers writes 1e30 for "none") are passed over.
    fn read_settings(&mut self, settings: &Map<String, Value>) {
        if let Some(pad) = settings.get("pad_token").and_then(|pad| pad.as_str().or_else(|| pad["content"].as_str())) {
            self.pad_token = pad.into();
        }
        if let Some(length) = settings.get("model_max_length").and_then(Value::as_u64).filter(|n| (2..=4096).contains(n)) {
            self.length = length as usize;
        }
    }

    /// CLIP's `tokenizer.json`. Merges are written as one string each: releases of `tokenizers` before 0.20 know only those.
    fn to_json(&self, start: u32, end: u32) -> Value {
        let special = |content: &str, id: u32| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let mut added: BTreeMap<u32, Value> = BTreeMap::from([(start, special(START, start)), (end, special(END, end))]);
        added.extend(self.added.iter().map(|(content, id)| (*id, special(content, *id))));
        let merges: Vec<String> = self.merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.into_values().collect::<Vec<_>>(),
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "behavior": "Removed", "invert": true, "pattern": {"Regex":
                    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"}},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                "trim_offsets": false, "add_prefix_space": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
                "end_of_word_suffix": WORD_END, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": self.vocab, "merges": merges},
        })
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    parse_object(path, &text)
}

fn parse_object(path: &Path, text: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(text).map_err(|e| Error::data(path, "a JSON object", e.to_string(), "copy or download the file again"))
}

fn ids(path: &Path, object: &Map<String, Value>) -> Result<BTreeMap<String, u32>> {
    let id = |(token, id): (&String, &Value)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok((token.clone(), id)),
        None => Err(Error::data(path, "an id for every token", format!("{id} for `{token}`"), "copy or download the file again")),
    };
    object.iter().map(id).collect()
}

fn pair(path: &Path, line: &str) -> Result<(String, String)> {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        [a, b] => Ok((a.into(), b.into())),
        _ => Err(Error::data(path, "two symbols per merge", format!("`{line}`"), "copy or download the file again")),
    }
}

/// The 256 characters that stand for bytes, in CLIP's order: printable bytes first, then the others moved behind 255.
fn byte_alphabet() -> Vec<char> {
    let printable: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
    let moved = 256..256 + (256 - printable.len() as u32);
    // All values lie below the surrogates, so none is dropped.
    printable.into_iter().chain(moved).filter_map(char::from_u32).collect()
}

/// Byte-pair encoding: merges the most frequent pair of neighbours again and again.
///
/// # Source
/// Sennrich et al. 2016, algorithm 1; pairs that occur once are left alone.
fn learn_merges(mut symbols: Vec<String>, words: &BTreeMap<String, usize>, limit: usize) -> (Vec<String>, Vec<(String, String)>) {
    let known: BTreeMap<String, usize> = symbols.iter().cloned().zip(0..).collect();
    let mut words: Vec<(Vec<usize>, usize)> = words.iter().map(|(word, count)| (split_word(word, &known), *count)).collect();
    let mut merges = Vec::new();
    while merges.len() < limit {
        let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *counts.entry((pair[0], pair[1])).or_insert(0) += count;
            }
        }
        let best = counts.into_iter().max_by_key(|(pair, count)| (*count, std::cmp::Reverse(*pair)));
        let Some((pair, _)) = best.filter(|(_, count)| *count > 1) else { break };
        let merged = symbols.len();
        symbols.push(format!("{}{}", symbols[pair.0], symbols[pair.1]));
        merges.push((symbols[pair.0].clone(), symbols[pair.1].clone()));
        for (word, _) in &mut words {
            merge_in(word, pair, merged);
        }
    }
    (symbols, merges)
}

/// Symbol numbers of `word`, the last one with its end mark.
fn split_word(word: &str, known: &BTreeMap<String, usize>) -> Vec<usize> {
    let last = word.chars().count().saturating_sub(1);
    let name = |(i, c): (usize, char)| if i == last { format!("{c}{WORD_END}") } else { c.to_string() };
    word.chars().enumerate().map(name).filter_map(|symbol| known.get(&symbol).copied()).collect()
}

fn merge_in(word: &mut Vec<usize>, pair: (usize, usize), merged: usize) {
    let mut i = 0;
    while i + 1 < word.len() {
        if (word[i], word[i + 1]) == pair {
            word[i] = merged;
            word.remove(i + 1);
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> Tokenizer {
        let texts = ["a photo of a sks street", "a photo of sks cars", "a photo of a sks urban scene"];
        Tokenizer::train(&texts, 540, 16).unwrap()
    }

    #[test]
    fn training_learns_frequent_words_and_covers_every_byte() {
        let tokenizer = trained();
        assert!(tokenizer.vocab_size() > 514 && tokenizer.vocab_size() <= 540);
        let (start, end, pad) = tokenizer.special_ids();
        assert_eq!((end, pad), (tokenizer.vocab_size() as u32 - 1, end));
        let ids = tokenizer.encode("A  Photo of\nSKS").unwrap();
        assert_eq!(ids.len(), 16);
        assert_eq!((ids[0], ids[5]), (start, end));
        assert_eq!(ids[1..5], ["a</w>", "photo</w>", "of</w>", "sks</w>"].map(|token| tokenizer.parts.vocab[token]));
        let foreign = tokenizer.encode("Straße 東京 🙂!?").unwrap();
        assert_eq!(foreign.len(), 16);
        assert_eq!(foreign.iter().position(|id| *id == end), Some(15), "{foreign:?}");
    }

    #[test]
    fn both_file_layouts_give_the_same_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = trained();
        tokenizer.save(dir.path()).unwrap();
        let new = Tokenizer::open(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        let old = Tokenizer::open(dir.path()).unwrap();
        assert_eq!(new.parts, tokenizer.parts);
        assert_eq!(old.parts, tokenizer.parts);
    }

    #[test]
    fn added_tokens_survive_both_layouts() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = trained();
        tokenizer.save(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        let id = tokenizer.vocab_size() as u32;
        std::fs::write(dir.path().join("added_tokens.json"), json!({"<v1>": id}).to_string()).unwrap();
        let old = Tokenizer::open(dir.path()).unwrap();
        assert_eq!(old.vocab_size() as u32, id + 1);
        assert_eq!(old.encode("a photo of <v1> cars").unwrap()[4], id);
        old.save(dir.path()).unwrap();
        assert_eq!(Tokenizer::open(dir.path()).unwrap().parts, old.parts);
    }

    #[test]
    fn long_prompts_are_cut() {
        let tokenizer = trained();
        let (start, end, _) = tokenizer.special_ids();
        let long = tokenizer.encode(&"photo ".repeat(40)).unwrap();
        assert_eq!((long.len(), long[0], long[15]), (16, start, end));
        assert!(long[1..15].iter().all(|id| *id == long[1]));
    }

    #[test]
    fn a_foreign_folder_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), r#"{"model": {"type": "Unigram", "vocab": []}}"#).unwrap();
        let message = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("another kind of tokenizer"), "{message}");
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        std::fs::write(dir.path().join("vocab.json"), r#"{"a": 0}"#).unwrap();
        std::fs::write(dir.path().join("merges.txt"), "#version: 0.2\na b c\n").unwrap();
        assert!(Tokenizer::open(dir.path()).unwrap_err().to_string().contains("`a b c`"));
    }
}
