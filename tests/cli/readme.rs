//! Every command of the README, in its order and as it stands there, but for numbers that a test cannot afford.

use super::support::{ADAPT, PRETRAIN, Sandbox, draw, outcome};
use datum::io::images::{write_gray_png, write_png};
use datum::io::weights::save;
use datum::models::segmenter::{EncoderDecoder, SegmenterConfig};
use datum::nn::Builder;
use std::collections::{BTreeMap, BTreeSet};

const README: &str = include_str!("../../README.md");

/// What is written there, and what is run: smaller numbers, and what needs no published weights.
const SMALLER: [(&str, &str); 10] = [
    ("--resolution 240 --crop-size 240", "--resolution 32 --crop-size 32"),
    ("--steps 300", "--steps 2"),
    ("--num-class-images 100", "--num-class-images 2"),
    ("--count 500", "--count 4"),
    ("--count 100 --look", "--count 4 --look"),
    (" --backbone-weights open_clip_pytorch_model.bin", ""),
    ("sam_vit_h_4b8939.pth", "regions"),
    ("mobile_sam.pt", "regions"),
    ("photo.jpg", "target.png"),
    ("--images photos --labels", "--images PHOTOS --labels"),
];

/// Commands in code blocks, lines joined; a comment ends them.
fn commands() -> Vec<String> {
    let (mut found, mut inside) = (Vec::new(), false);
    let joined = README.replace("\\\n", " ");
    for line in joined.lines() {
        inside ^= line.starts_with("```");
        let command = line.split(" #").next().unwrap_or_default().trim();
        if inside && (command.starts_with("datum ") || command.starts_with("clouds ")) {
            found.push(SMALLER.iter().fold(command.to_string(), |line, (from, to)| line.replace(from, to)));
        }
    }
    found
}

/// The TOML of a data set of one's own.
fn own_dataset() -> String {
    let block = README.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("the README shows a data set").to_string()
}

/// Words of a line; double quotes hold several together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars().chain(" ".chars()) {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            c => word.push(c),
        }
    }
    words
}

/// Small settings of a verb as the environment that a command reads them from.
fn settings(verb: &str) -> Vec<(String, String)> {
    let variable = |(key, value): (&str, &str)| {
        (format!("DATUM_SET_{}", key.replace('.', "__").replace('-', "_").to_uppercase()), value.to_string())
    };
    let of_flags = |line: &str| -> Vec<(String, String)> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pairs = words.windows(2).filter(|pair| pair[0].starts_with("--"));
        let pair = |pair: &[&str]| variable(pair[1].split_once('=').unwrap_or((&pair[0][2..], pair[1])));
        pairs.filter(|pair| !["--source", "--images"].contains(&pair[0])).map(pair).collect()
    };
    match verb {
        "pretrain" => [of_flags(PRETRAIN), of_flags("--vae.steps 2 --unet.steps 2")].concat(),
        "personalize" => of_flags("--resolution 32 --crop-size 32 --steps 2 --train-batch-size 1 --num-class-images 2"),
        "generate" => of_flags("--count 2 --steps 2 --height 32 --width 64"),
        "adapt" => [of_flags(ADAPT), of_flags("--iterations 2")].concat(),
        "train" => of_flags(
            "--iterations 2 --batch-size 1 --workers 1 --model.backbone convnext --model.depths [1,1,1,1] --model.widths [8,8,8,8] \
             --model.freeze-backbone false --model.width 32 --model.num-queries 4 --model.heads 2 --model.encoder-layers 1 \
             --model.decoder-layers 1 --loss.points 32 --crop.height 32 --crop.width 64 --short-side 0 \
             --data.initial-size.height 32 --data.initial-size.width 48 --sam.min-area 20",
        ),
        "render-street" => of_flags("--width 64 --height 32"),
        _ => Vec::new(),
    }
}

/// The names the README uses: photos, data sets, and models in the cache of the hub.
fn prepare(sandbox: &Sandbox) {
    std::fs::remove_dir_all(sandbox.path("set")).unwrap();
    for index in 0..4 {
        let (image, label) = draw(index);
        let picture = |name: String| write_png(&sandbox.path(&name), &image, &[]).unwrap();
        let labels = |name: String, ids: [u8; 3]| {
            let ids: Vec<u8> = label.iter().map(|id| ids[usize::from(*id)]).collect();
            write_gray_png(&sandbox.path(&name), super::support::SIZE, &ids, &[]).unwrap();
        };
        picture(format!("PHOTOS/p{index}.png"));
        picture("target.png".into());
        picture(format!("datasets/gta/images/0000{index}.png"));
        labels(format!("datasets/gta/labels/0000{index}.png"), [23, 7, 26]);
        picture(format!("datasets/cityscapes/leftImg8bit/val/ulm/{index}_leftImg8bit.png"));
        labels(format!("datasets/cityscapes/gtFine/val/ulm/{index}_gtFine_labelIds.png"), [23, 7, 26]);
        labels(format!("out/p{index}.png"), [10, 0, 13]);
        picture(format!("photos/images/p{index}.png"));
        labels(format!("photos/labels/p{index}.png"), [0, 1, 255]);
    }
    sandbox.write("photos/val.txt", b"p0\np3\n");
    sandbox.write("my.toml", own_dataset().as_bytes());
    // As a checkpoint of DAFormer names its tensors; the first bytes of a file tell its format.
    let config = SegmenterConfig { encoder: "mit-b0".into(), decoder_channels: Some(8), ..SegmenterConfig::default() };
    let builder = Builder::random(0);
    EncoderDecoder::new(&config, &builder).unwrap();
    let student = builder.finish().unwrap().prefixed("model").tensors();
    std::fs::create_dir(sandbox.path("daformer")).unwrap();
    save(&sandbox.path("daformer/latest.pth"), &student, &BTreeMap::new()).unwrap();
    for model in ["CompVis--stable-diffusion-v1-4", "stabilityai--stable-diffusion-2"] {
        let folder = format!("hub/models--{model}");
        sandbox.write(&format!("{folder}/refs/main"), b"abc");
        for (path, bytes) in sandbox.contents("base/model") {
            sandbox.write(&format!("{folder}/snapshots/abc/{}", path.display()), &bytes);
        }
    }
}

/// `runs/…NAME`: the README leaves out the time at the front of names; `runs/…/images` is the newest set.
fn named(sandbox: &Sandbox, word: &str) -> String {
    let Some(end) = word.strip_prefix("runs/…") else { return word.into() };
    let end = if end == "/images" { "_generate_things_1/images" } else { end };
    let (name, inside) = end.split_once('/').unwrap_or((end, ""));
    let runs = std::fs::read_dir(sandbox.path("runs")).unwrap().flatten();
    let found = runs.map(|run| run.file_name().into_string().unwrap()).find(|run| run.ends_with(name));
    format!("runs/{}/{inside}", found.unwrap_or_else(|| panic!("no run …{name}"))).trim_end_matches('/').into()
}

/// Runs a line; the exit code and what was said.
fn run(sandbox: &Sandbox, line: &str) -> (Option<i32>, String) {
    let words: Vec<String> = words(line).iter().map(|word| named(sandbox, word)).collect();
    let program = if words[0] == "clouds" { env!("CARGO_BIN_EXE_clouds") } else { env!("CARGO_BIN_EXE_datum") };
    let verb = if words[1] == "dataset" { &words[2] } else { &words[1] };
    let mut command = sandbox.command(program);
    command.args(&words[1..]).env("HF_HUB_CACHE", sandbox.path("hub")).envs(settings(verb));
    let outcome = outcome(&mut command);
    (outcome.status.code(), outcome.stderr)
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let sandbox = Sandbox::new();
    prepare(&sandbox);
    let lines = commands();
    assert!(lines.len() >= 18, "{lines:#?}");
    let mut verbs = BTreeSet::new();
    for line in &lines {
        let (line, code, said) = match line {
            // Needs a language model of gigabytes: the error names what is missing.
            line if line.contains("gguf:") => (line.clone(), 3, "qwen2.5-7b-instruct-q4_k_m.gguf"),
            line if line.contains("openai:") => (format!("{line} --model m --dry-run"), 0, ""),
            line => (line.clone(), 0, ""),
        };
        let (found, stderr) = run(&sandbox, &line);
        assert_eq!(found, Some(code), "{line}\n{stderr}");
        assert!(stderr.contains(said), "{line}\n{stderr}");
        // Further on it is compared with a second one.
        if line.starts_with("datum adapt --source gta") {
            assert_eq!(run(&sandbox, &format!("{line} --seed 1")).0, Some(0));
        }
        verbs.extend(line.split(' ').nth(1).map(String::from));
    }
    for verb in ["personalize", "generate", "adapt", "evaluate", "predict", "report", "pretrain", "dataset", "prompts"] {
        assert!(verbs.contains(verb), "{verb}");
    }
    for file in ["comparison.html", "OUT", "sheet.png", "plain", "day/images/000000.png", "list/prompts.txt"] {
        assert!(sandbox.has(file), "{file}");
    }
}
