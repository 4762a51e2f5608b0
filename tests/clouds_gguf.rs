//! Prompts from language models in GGUF files: tiny ones made here. Their layers do nothing, so that each token decides the
//! next one: after a line feed comes the first line of a list, after each line the next one, then the end of the turn.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use datum::base::Result;
use datum::base::progress::Silent;
use datum::systems::clouds::config::PromptsConfig;
use datum::systems::clouds::prompts::{self, Written};
use datum::train::run_dir::RunDir;
use std::path::Path;

const WIDTH: usize = 320;
const HEADS: usize = 4;
const HIDDEN: usize = 64;

const LINES: [&str; 6] = [
    "1. A photo of a red bus crossing a stone bridge at dawn.",
    "2. A picture of a crowded bus stop in heavy rain downtown.",
    "3. A bus.",
    "4. A snapshot of two yellow buses waiting near a school in winter.",
    "5. A photo of an empty night coach under a full moon.",
    "6. A photo of an orange minibus on a dusty road at noon.",
];

const GRAMMAR: &str = r#"
    version = 7
    openings = ["A photo", "A picture", "A snapshot"]
    words = [8, 17]
    settings = ["dawn", "rain", "winter", "night", "noon"]
    class = [{ name = "bus", words = ["bus", "buses", "coach", "minibus"], subjects = ["a bus"] }]
    [rules]
    prompt = ["{opening} of {subject}"]
    setting = ["at dawn"]
"#;

/// How GPT-2's alphabet writes a byte.
fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if plain(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !plain(*b)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

fn written(text: &str) -> String {
    text.bytes().map(byte_char).collect()
}

fn vocabulary(marks: &[&str]) -> Vec<String> {
    let bytes = (0..=255).map(|byte| byte_char(byte).to_string());
    let lines = LINES.iter().map(|line| written(&format!("{line}\n")));
    bytes.chain(lines).chain(marks.iter().map(|mark| mark.to_string())).collect()
}

/// A matrix with ones at the places (row, column).
fn matrix(rows: usize, columns: usize, ones: &[(usize, usize)]) -> QTensor {
    let mut values = vec![0.0f32; rows * columns];
    ones.iter().for_each(|(row, column)| values[row * columns + column] = 1.0);
    quantized(Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap(), GgmlDType::Q8_0)
}

fn quantized(tensor: Tensor, dtype: GgmlDType) -> QTensor {
    QTensor::quantize(&tensor, dtype).unwrap()
}

fn vector(size: usize, value: f32) -> QTensor {
    quantized(Tensor::full(value, size, &Device::Cpu).unwrap(), GgmlDType::F32)
}

fn tensors(architecture: &str, vocabulary: &[String], end: usize) -> Vec<(String, QTensor)> {
    let first = 256;
    let line_feed = vocabulary.iter().position(|token| *token == written("\n")).unwrap();
    let mut next = vec![(first, line_feed)];
    next.extend((first..first + LINES.len()).map(|line| (if line + 1 < first + LINES.len() { line + 1 } else { end }, line)));
    let own: Vec<(usize, usize)> = (0..vocabulary.len()).map(|token| (token, token)).collect();
    let head = WIDTH / HEADS;
    let mut tensors = vec![
        ("token_embd.weight".to_string(), matrix(vocabulary.len(), WIDTH, &own)),
        ("output.weight".into(), matrix(vocabulary.len(), WIDTH, &next)),
        ("output_norm.weight".into(), vector(WIDTH, 1.0)),
    ];
    for layer in 0..2 {
        let mut add = |name: &str, tensor| tensors.push((format!("blk.{layer}.{name}"), tensor));
        add("attn_q.weight", matrix(WIDTH, WIDTH, &[]));
        for name in ["attn_k.weight", "attn_v.weight"] {
            add(name, matrix(2 * head, WIDTH, &[]));
        }
        add("attn_output.weight", matrix(WIDTH, WIDTH, &[]));
        for name in ["ffn_gate.weight", "ffn_up.weight"] {
            add(name, matrix(HIDDEN, WIDTH, &[]));
        }
        add("ffn_down.weight", matrix(WIDTH, HIDDEN, &[]));
        for name in ["attn_norm.weight", "ffn_norm.weight"] {
            add(name, vector(WIDTH, 1.0));
        }
        if architecture == "qwen2" {
            add("attn_q.bias", vector(WIDTH, 0.0));
            add("attn_k.bias", vector(2 * head, 0.0));
            add("attn_v.bias", vector(2 * head, 0.0));
        }
        if architecture == "qwen3" {
            add("attn_q_norm.weight", vector(head, 1.0));
            add("attn_k_norm.weight", vector(head, 1.0));
        }
    }
    tensors
}

fn write(path: &Path, architecture: &str, kind: &str) {
    write_with(path, architecture, kind, 2);
}

/// With so many heads of keys and values in the settings, whatever the tensors hold.
fn write_with(path: &Path, architecture: &str, kind: &str, key_heads: usize) {
    let (pre, marks, end): (_, &[&str], _) = match architecture {
        "llama" => ("llama-bpe", &["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
        _ => ("qwen2", &["<|im_start|>", "<|im_end|>", "<think>", "</think>"], "<|im_end|>"),
    };
    let vocabulary = vocabulary(marks);
    let end = vocabulary.iter().position(|token| token == end).unwrap();
    let text = |text: &str| Value::String(text.into());
    let token_types = (0..vocabulary.len()).map(|id| Value::I32(if id >= 256 + LINES.len() { 3 } else { 1 })).collect();
    let numbers = [
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", key_heads),
        ("attention.key_length", WIDTH / HEADS),
        ("rope.dimension_count", WIDTH / HEADS),
        ("block_count", 2),
        ("embedding_length", WIDTH),
        ("context_length", 4096),
    ];
    let mut metadata = vec![
        ("general.architecture".to_string(), text(architecture)),
        (format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
        (format!("{architecture}.rope.freq_base"), Value::F32(10_000.0)),
        ("tokenizer.ggml.model".into(), text(kind)),
        ("tokenizer.ggml.pre".into(), text(pre)),
        ("tokenizer.ggml.tokens".into(), Value::Array(vocabulary.iter().map(|token| text(token)).collect())),
        ("tokenizer.ggml.token_type".into(), Value::Array(token_types)),
        ("tokenizer.ggml.merges".into(), Value::Array(vec![text(&format!("{} {}", written("\u{7f}"), written("\u{7f}")))])),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(end as u32)),
    ];
    // A merge needs its result in the vocabulary; DEL never occurs in text.
    if let Value::Array(tokens) = &mut metadata[5].1 {
        tokens[0] = text(&written("\u{7f}\u{7f}"));
    }
    metadata.extend(numbers.map(|(name, value)| (format!("{architecture}.{name}"), Value::U32(value as u32))));
    let tensors = tensors(architecture, &vocabulary, end);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

fn run(folder: &Path, model: &Path, change: impl FnOnce(&mut PromptsConfig)) -> Result<Written> {
    let grammar = folder.with_file_name("grammar.toml");
    std::fs::write(&grammar, GRAMMAR).unwrap();
    let mut config = PromptsConfig {
        llm: format!("gguf:{}", model.display()),
        grammar: grammar.display().to_string(),
        count: 5,
        ..PromptsConfig::default()
    };
    change(&mut config);
    let run = RunDir::create(Some(folder), folder, "").or_else(|_| RunDir::open(folder))?;
    run.write_recipe("")?;
    prompts::run(&config, &run, None, &Silent)
}

#[test]
fn llama_and_qwen_write_prompts_on_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "qwen2", "qwen3"] {
        let model = dir.path().join(format!("{architecture}.gguf"));
        write(&model, architecture, "gpt2");
        let folder = dir.path().join(architecture);
        let written = run(&folder, &model, |_| ()).unwrap_or_else(|e| panic!("{architecture}: {e}"));
        assert_eq!((written.count, written.tally.lines, written.tally.invalid), (5, 6, 1), "{architecture}");
        let prompts = std::fs::read_to_string(folder.join("prompts.txt")).unwrap();
        let expected: Vec<&str> =
            LINES.iter().filter(|line| line.len() > 10).map(|line| line[3..].trim_end_matches('.')).collect();
        assert_eq!(prompts.lines().collect::<Vec<_>>(), expected, "{architecture}");
        let manifest = std::fs::read_to_string(folder.join("prompts.jsonl")).unwrap();
        assert!(manifest.contains(&format!("\"source\":\"gguf:{architecture}.gguf ")), "{manifest}");
        assert_eq!(std::fs::read_dir(folder.join("answers")).unwrap().count(), 1);
        // Kept answers are read, not made again.
        std::fs::write(folder.join("prompts.txt"), "").unwrap();
        run(&folder, &model, |_| ()).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("prompts.txt")).unwrap(), prompts);
    }
}

#[test]
fn an_answer_that_is_too_long_is_cut_and_its_last_line_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    write(&model, "qwen2", "gpt2");
    let folder = dir.path().join("run");
    // One token is one line here. The likeliest tokens alone are the same ones.
    run(&folder, &model, |config| (config.max_tokens, config.count, config.temperature) = (3, 2, 0.0)).unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("prompts.txt")).unwrap().lines().count(), 2);
    let answer = std::fs::read_dir(folder.join("answers")).unwrap().next().unwrap().unwrap().path();
    let answer: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(answer).unwrap()).unwrap();
    assert_eq!(answer["cut"], true);
    assert_eq!(answer["text"].as_str().unwrap().lines().count(), 3);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("text.gguf"), "a poem").unwrap();
    write(&path("whole.gguf"), "llama", "gpt2");
    let bytes = std::fs::read(path("whole.gguf")).unwrap();
    std::fs::write(path("half.gguf"), &bytes[..bytes.len() / 2]).unwrap();
    write(&path("mamba.gguf"), "mamba", "gpt2");
    write(&path("pieces.gguf"), "llama", "llama");
    write_with(&path("headless.gguf"), "qwen2", "gpt2", 0);
    for (name, part) in [
        ("none.gguf", "check the path"),
        ("text.gguf", "a GGUF file"),
        ("half.gguf", "half.gguf"),
        ("mamba.gguf", "`mamba`"),
        ("pieces.gguf", "save the tokenizer.json of the model as"),
        ("headless.gguf", "0 of keys and values"),
    ] {
        let error = run(&path("run"), &path(name), |_| ()).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains(part), "{name}: {error}");
    }
}
