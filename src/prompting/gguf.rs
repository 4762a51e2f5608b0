//! A language model on this machine: quantised Llama or Qwen from a GGUF file.

use super::writer::{Answer, Request, Writer};
use crate::base::progress::Progress;
use crate::base::{Error, Result, Rng, interrupt};
use crate::io::gguf::{GgufFile, first_line};
use crate::io::hash;
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};
use std::path::Path;
use tokenizers::Tokenizer;

/// Positions that candle's quantised Llama has room for.
const MAX_POSITIONS: usize = 4096;

/// How text is drawn from the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Tokens are drawn from the likeliest ones that have this probability together.
    pub top_p: f64,
    /// Longest answer.
    pub max_tokens: usize,
}

/// See the module.
pub struct Gguf {
    name: String,
    network: Network,
    tokenizer: Tokenizer,
    family: Family,
    /// Tokens that end an answer.
    stops: Vec<u32>,
    /// Longest sequence.
    positions: usize,
    sampling: Sampling,
}

enum Network {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
}

impl Network {
    /// Logits (vocabulary) after the last of `ids`, which begin at `position`; 0 begins a new text.
    fn forward(&mut self, ids: &[u32], position: usize) -> candle_core::Result<Vec<f32>> {
        let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        if let (Self::Qwen3(model), 0) = (&mut *self, position) {
            model.clear_kv_cache();
        }
        let logits = match self {
            Self::Llama(model) => model.forward(&ids, position)?,
            Self::Qwen2(model) => model.forward(&ids, position)?,
            Self::Qwen3(model) => model.forward(&ids, position)?,
        };
        logits.flatten_all()?.to_vec1()
    }
}

/// How a family of chat models marks who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// `<|im_start|>role … <|im_end|>`: Qwen 2 and 2.5.
    ChatMl,
    /// The same with an empty thought before the answer: Qwen 3.
    ChatMlThought,
    /// `<|start_header_id|>role<|end_header_id|>`: Llama 3.
    Llama3,
    /// `[INST] … [/INST]`: Llama 2.
    Inst,
    /// `<|user|> … </s>`: TinyLlama.
    Zephyr,
}

impl Family {
    /// By the template in the file, else by the words of the vocabulary.
    fn of(architecture: &str, template: &str, tokenizer: &Tokenizer) -> Self {
        let has = |mark: &str| if template.is_empty() { tokenizer.token_to_id(mark).is_some() } else { template.contains(mark) };
        match () {
            () if has("<|start_header_id|>") => Self::Llama3,
            () if architecture == "qwen3" => Self::ChatMlThought,
            () if has("<|im_start|>") || architecture == "qwen2" => Self::ChatMl,
            () if has("<|user|>") => Self::Zephyr,
            () => Self::Inst,
        }
    }

    /// The whole text up to where the model goes on. `begin` is the token of the beginning of a text.
    fn prompt(self, begin: &str, system: &str, user: &str) -> String {
        match self {
            Self::ChatMl | Self::ChatMlThought => {
                let thought = if self == Self::ChatMlThought { "<think>\n\n</think>\n\n" } else { "" };
                format!(
                    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{thought}"
                )
            }
            Self::Llama3 => {
                let turn = |role: &str, text: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}");
                let end = "<|eot_id|>";
                format!("{begin}{}{end}{}{end}{}", turn("system", system), turn("user", user), turn("assistant", ""))
            }
            Self::Inst => format!("{begin}[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]"),
            Self::Zephyr => format!("<|system|>\n{system}</s>\n<|user|>\n{user}</s>\n<|assistant|>\n"),
        }
    }

    /// The token after an answer.
    fn end(self) -> &'static str {
        match self {
            Self::ChatMl | Self::ChatMlThought => "<|im_end|>",
            Self::Llama3 => "<|eot_id|>",
            Self::Inst | Self::Zephyr => "</s>",
        }
    }
}

impl Gguf {
    /// Reads the model at `path`. The tokenizer comes from the file; where it is of a kind that cannot be read from there
    /// (SentencePiece), from `tokenizer.json` beside it.
    ///
    /// # Errors
    /// Other formats and architectures, damaged files, no tokenizer.
    pub fn open(path: &Path, sampling: Sampling) -> Result<Self> {
        if !(sampling.temperature >= 0.0 && sampling.top_p > 0.0 && sampling.max_tokens > 0) {
            return Err(Error::Usage("temperature must not be negative; top_p and max_tokens must be greater than 0".into()));
        }
        let mut file = GgufFile::open(path)?;
        let tokenizer = tokenizer(&mut file)?;
        let architecture = file.text("general.architecture").unwrap_or_default().to_string();
        let family = Family::of(&architecture, file.text("tokenizer.chat_template").unwrap_or_default(), &tokenizer);
        let ids = [file.number("tokenizer.ggml.eos_token_id"), tokenizer.token_to_id(family.end())];
        let positions = file.number(&format!("{architecture}.context_length")).map_or(MAX_POSITIONS, |n| n as usize);
        let digest = hash::file(path)?;
        let name = format!("gguf:{} {}", path.file_name().unwrap_or_default().to_string_lossy(), &digest[..16]);
        Ok(Self {
            name,
            tokenizer,
            family,
            stops: ids.into_iter().flatten().collect(),
            positions: positions.min(MAX_POSITIONS),
            sampling,
            network: network(file, &architecture)?,
        })
    }

    /// The text that the model goes on with.
    fn prompt(&self, request: &Request) -> Result<Vec<u32>> {
        let begin = ["<|begin_of_text|>", "<s>"].into_iter().find(|mark| self.tokenizer.token_to_id(mark).is_some());
        let text = self.family.prompt(begin.unwrap_or_default(), &request.system, &request.user);
        let encoded =
            self.tokenizer.encode(text, false).map_err(|e| Error::Usage(format!("cannot tokenize the request: {e}")))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The answer to one request; `progress` sees it grow.
    ///
    /// # Randomness
    /// Draws from the stream `gguf` of the seed and the request's number, one a token.
    fn answer(&mut self, request: &Request, progress: &dyn Progress) -> Result<Answer> {
        let mut ids = self.prompt(request)?;
        let asked = ids.len();
        let most = (asked + self.sampling.max_tokens).min(self.positions);
        let mut rng = Rng::stream(request.seed, "gguf", &[request.number]);
        let tokenizer = self.tokenizer.clone();
        let mut decoder = tokenizer.decode_stream(true);
        let mut text = String::new();
        progress.stage(&format!("request {}", request.number), self.sampling.max_tokens as u64, 0);
        let mut cut = true;
        let mut next = ids.clone();
        while ids.len() < most {
            if interrupt::requested() {
                return Err(Error::Interrupted { resume: "run the same command again; answers are kept".into() });
            }
            let logits = self.network.forward(&next, ids.len() - next.len())?;
            let id = draw(&logits, self.sampling, &mut rng)?;
            if self.stops.contains(&id) {
                cut = false;
                break;
            }
            ids.push(id);
            next = vec![id];
            // Bytes of an unfinished character wait for the next token; what never becomes text is left out.
            text.push_str(&decoder.step(id).ok().flatten().unwrap_or_default());
            progress.step((ids.len() - asked) as u64, text.lines().next_back().unwrap_or_default());
            // Twice the lines that were asked for: it will not stop by itself.
            if text.lines().count() > 2 * request.lines {
                break;
            }
        }
        progress.end();
        Ok(Answer { text, cut, tokens: 0 })
    }
}

impl Writer for Gguf {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn sampling(&self) -> String {
        format!("{:?}", self.sampling)
    }

    fn ask(
        &mut self,
        requests: &[Request],
        heard: &mut dyn FnMut(usize, Answer) -> Result<()>,
        progress: &dyn Progress,
    ) -> Result<()> {
        for (at, request) in requests.iter().enumerate() {
            let answer = self.answer(request, progress)?;
            heard(at, answer)?;
        }
        Ok(())
    }
}

fn tokenizer(file: &mut GgufFile) -> Result<Tokenizer> {
    // candle knows Llama 3's way of splitting words by another name than its files do.
    if file.text("tokenizer.ggml.pre") == Some("llama-bpe") {
        file.content.metadata.insert("tokenizer.ggml.pre".into(), Value::String("llama3".into()));
    }
    let beside = file.path().with_file_name("tokenizer.json");
    match Tokenizer::from_gguf(&file.content) {
        Ok(tokenizer) => Ok(tokenizer),
        Err(_) if beside.is_file() => Tokenizer::from_file(&beside).map_err(|e| {
            Error::data(
                &beside,
                "a tokenizer of Hugging Face's library",
                e.to_string(),
                "download the model's tokenizer.json again",
            )
        }),
        Err(error) => Err(Error::data(
            file.path(),
            "a tokenizer in the file (byte-level BPE)",
            first_line(&error),
            format!("save the tokenizer.json of the model as {}", beside.display()),
        )),
    }
}

/// candle divides by these without looking.
fn check_sizes(file: &GgufFile, architecture: &str) -> Result<()> {
    let size = |name: &str| file.number(&format!("{architecture}.{name}"));
    let (width, heads) = (size("embedding_length"), size("attention.head_count"));
    let key_heads = size("attention.head_count_kv").or(heads);
    let fits =
        |width: u32, heads: u32, key_heads: u32| width > 0 && key_heads > 0 && heads > 0 && heads.is_multiple_of(key_heads);
    match (width, heads, key_heads) {
        // What is missing is named when the file is loaded.
        (Some(width), Some(heads), Some(key_heads)) if !fits(width, heads, key_heads) => {
            let found = format!("{heads} heads, {key_heads} of keys and values, {width} channels");
            let expected = "as many heads of attention as a multiple of those of its keys and values";
            Err(Error::data(file.path(), expected, found, "download the file again"))
        }
        _ => Ok(()),
    }
}

fn network(mut file: GgufFile, architecture: &str) -> Result<Network> {
    check_sizes(&file, architecture)?;
    let path = file.path().to_path_buf();
    let device = Device::Cpu;
    let loaded = match architecture {
        "llama" => quantized_llama::ModelWeights::from_gguf(file.content, &mut file.reader, &device).map(Network::Llama),
        "qwen2" => quantized_qwen2::ModelWeights::from_gguf(file.content, &mut file.reader, &device).map(Network::Qwen2),
        "qwen3" => quantized_qwen3::ModelWeights::from_gguf(file.content, &mut file.reader, &device).map(Network::Qwen3),
        other => {
            let next = "give a GGUF file of Llama, Qwen 2, Qwen 2.5 or Qwen 3, or serve the model and use `--llm openai:URL`";
            return Err(Error::data(path, "an architecture llama, qwen2 or qwen3", format!("`{other}`"), next));
        }
    };
    let expected = format!("all tensors and settings of {architecture}");
    loaded.map_err(|e| Error::data(path, expected, first_line(&e), "download the file again"))
}

/// A token from logits.
fn draw(logits: &[f32], sampling: Sampling, rng: &mut Rng) -> Result<u32> {
    if logits.iter().any(|value| !value.is_finite()) {
        return Err(Error::environment("the language model computes values that are not numbers", "use another GGUF file of it"));
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    if sampling.temperature == 0.0 {
        return Ok(order[0]);
    }
    let largest = logits[order[0] as usize];
    let weights: Vec<f64> =
        order.iter().map(|&id| (f64::from(logits[id as usize] - largest) / sampling.temperature).exp()).collect();
    let kept = sampling.top_p * weights.iter().sum::<f64>();
    let mut mass = 0.0;
    let count = weights
        .iter()
        .take_while(|weight| {
            let before = mass;
            mass += **weight;
            before < kept
        })
        .count();
    let mut left = f64::from(rng.uniform()) * weights[..count].iter().sum::<f64>();
    let chosen = weights[..count].iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    Ok(order[chosen.unwrap_or(count - 1)])
}
