//! Generation: every image depends on its number alone, and restarts make what is missing.

use super::support::{Sandbox, checked};
use candle_core::{Device, Tensor};
use datum::io::images::{self, RgbImage, read_rgb};
use datum::io::png_text;
use datum::io::weights::{SafetensorsFile, TensorSource};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

const LINE: &str = "generate --prompts things.txt --model base --steps 2";

fn manifest(sandbox: &Sandbox, path: &str) -> Vec<u64> {
    let lines = sandbox.text(path);
    lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["index"].as_u64().unwrap()).collect()
}

fn latents(sandbox: &Sandbox, name: &str, shape: &[usize], value: f32) {
    let tensor = Tensor::full(value, shape, &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([("latents".to_string(), tensor)]);
    datum::io::weights::save(&sandbox.path(name), &tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn an_image_is_the_same_alone_in_batches_and_in_shards() {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{LINE} --count 5 --output one"));
    let images = sandbox.contents("one/images");
    assert_eq!(images.len(), 5);
    sandbox.ok(&format!("{LINE} --count 5 --batch-size 3 --output batched"));
    assert_eq!(sandbox.contents("batched/images"), images);
    for part in 0..3 {
        sandbox.ok(&format!("{LINE} --count 5 --batch-size 2 --shard {part}/3 --output shards"));
    }
    assert_eq!(sandbox.contents("shards/images"), images);
    assert_eq!(manifest(&sandbox, "shards/shards/1-of-3/manifest.jsonl"), [1, 4]);
    sandbox.ok(&format!("{LINE} --count 5 --shard 4/5 --output alone"));
    assert_eq!(
        sandbox.contents("alone/images"),
        BTreeMap::from([("im_4_p4.png".into(), images["im_4_p4.png".as_ref() as &std::path::Path].clone())])
    );
    sandbox.fails(&format!("{LINE} --shard 3/3 --output x"), 2, &["--shard 3/3", "0/4"]);
    sandbox.fails(&format!("{LINE} --shard 0/3"), 2, &["--shard needs --output"]);
}

#[test]
fn a_restart_makes_only_what_is_missing() {
    let sandbox = Sandbox::new();
    let line = format!("{LINE} --count 4 --output out");
    sandbox.ok(&line);
    let (images, made) = (sandbox.contents("out/images"), sandbox.text("out/manifest.jsonl"));
    let modified = |name: &str| std::fs::metadata(sandbox.path(name)).unwrap().modified().unwrap();
    let before = modified("out/images/im_2_p2.png");

    std::fs::remove_file(sandbox.path("out/images/im_1_p1.png")).unwrap();
    let again = sandbox.ok(&format!("{line} --json"));
    assert!(again.stderr.contains("3 of 4 images are there already"), "{}", again.stderr);
    assert!(again.stdout.contains("\"made\":1,\"kept\":3"), "{}", again.stdout);
    assert_eq!(sandbox.contents("out/images"), images);
    assert_eq!(modified("out/images/im_2_p2.png"), before);
    let mut indices = manifest(&sandbox, "out/manifest.jsonl");
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2, 3], "no image is listed twice");

    // A killed process leaves half a line and a picture cut short.
    let whole = sandbox.text("out/manifest.jsonl");
    sandbox.write("out/manifest.jsonl", &whole.as_bytes()[..whole.len() - 20]);
    let picture = &images["im_0_p0.png".as_ref() as &std::path::Path];
    sandbox.write("out/images/im_0_p0.png", &picture[..picture.len() / 2]);
    let again = sandbox.ok(&line);
    assert!(again.stderr.contains("half written") && again.stderr.contains("2 of 4"), "{}", again.stderr);
    assert_eq!(sandbox.contents("out/images"), images);
    let sorted = |text: &str| text.lines().map(str::to_string).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(&sandbox.text("out/manifest.jsonl")), sorted(&made));
}

#[test]
fn images_of_other_settings_are_not_mixed() {
    let sandbox = Sandbox::new();
    let line = format!("{LINE} --count 3 --output out");
    sandbox.ok(&line);
    sandbox.write("one.txt", b"a photo of {identifier} cars");
    let kept =
        |sandbox: &Sandbox| (sandbox.contents("out/images"), sandbox.text("out/manifest.jsonl"), sandbox.text("out/recipe.toml"));
    let before = kept(&sandbox);
    let prompts = "prompt \"a photo of sks traffic lights\" there, \"a photo of sks cars\" wanted";
    for (other, part) in [
        (format!("{line} --seed 9"), "seed 0 there, 9 wanted"),
        (format!("{line} --seed 9 --plan"), "seed 0 there, 9 wanted"),
        (line.replace("--count 3", "--count 9 --width 48"), "size 32x32 there, 48x32 wanted"),
        (line.replace("things.txt", "one.txt"), prompts),
        (line.replace("--steps 2", "--steps 3 --scheduler ddim"), "steps 2 there, 3 wanted; scheduler pndm there, ddim wanted"),
    ] {
        let parts = ["out holds images of other settings: image 0 has ", part, "another `--output`, or remove that folder"];
        sandbox.fails(&other, 2, &parts);
    }
    assert!(kept(&sandbox) == before, "what is refused changes nothing");
    // The number of images is free.
    for (count, tally) in [(5, "\"made\":2,\"kept\":3"), (2, "\"made\":0,\"kept\":2")] {
        let again = sandbox.ok(&format!("{line} --json").replace("--count 3", &format!("--count {count}")));
        assert!(again.stdout.contains(tally), "{}", again.stdout);
    }
    assert_eq!(sandbox.contents("out/images").len(), 5);

    // Images that nobody asks for now lie beside the others.
    sandbox.write("two.txt", b"a photo of {identifier} cars\na photo of {identifier} buses");
    sandbox.ok(&format!("{LINE} --count 2 --output two").replace("things.txt", "two.txt"));
    let fewer = format!("{LINE} --count 1 --output two").replace("things.txt", "one.txt");
    sandbox.fails(&fewer, 2, &["image 1 has prompt \"a photo of sks buses\" there"]);
}

#[test]
fn shards_of_other_settings_are_not_mixed() {
    let sandbox = Sandbox::new();
    let shard = |count: u64, index: u64| format!("{LINE} --count {count} --shard {index}/2 --output sharded --json");
    sandbox.ok(&shard(4, 0));
    for index in 0..2 {
        let parts = ["sharded holds images of other settings", "seed 0 there, 9 wanted"];
        sandbox.fails(&format!("{} --seed 9", shard(4, index)), 2, &parts);
    }
    for (line, tally) in
        [(shard(4, 1), "\"made\":2,\"kept\":0"), (shard(4, 0), "\"made\":0,\"kept\":2"), (shard(6, 0), "\"made\":1,\"kept\":2")]
    {
        let done = sandbox.ok(&line);
        assert!(done.stdout.contains(tally), "{}", done.stdout);
    }
    let names: Vec<_> = sandbox.contents("sharded/images").into_keys().map(|name| name.display().to_string()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
}

/// Interrupts a command that has no `--output` once `file` lies in its run, and returns the folder that it says it goes on in.
fn interrupted(sandbox: &Sandbox, line: &str, file: &str) -> String {
    let child = sandbox.started(line, "runs");
    let start = Instant::now();
    while !std::fs::read_dir(sandbox.path("runs")).unwrap().flatten().any(|run| run.path().join(file).is_file()) {
        assert!(start.elapsed() < Duration::from_secs(60), "datum {line}: no {file}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    let stopped = checked(child);
    stopped.failed(line, 130, &["next: run the same command with `--output runs/", " are kept"]);
    stopped.stderr.split("`--output ").nth(1).unwrap().split('`').next().unwrap().to_string()
}

#[test]
fn ctrl_c_names_the_folder_to_go_on_in() {
    for (line, file, fewer, least) in [
        (format!("{LINE} --count 2000"), "images/im_2_p2.png", "--count 4", 3),
        ("dataset render-street --size 48x32 --count 200000".to_string(), "images/000000.png", "--count 40", 32),
    ] {
        let sandbox = Sandbox::new();
        let run = interrupted(&sandbox, &line, file);
        let whole = line.split(" --count").next().unwrap();
        let done = sandbox.ok(&format!("{whole} {fewer} --output {run} --json"));
        let done: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert!(done["run"] == run.as_str() && done["kept"].as_u64() >= Some(least), "{done}");
    }
}

#[test]
fn given_latents_replace_the_noise() {
    let sandbox = Sandbox::new();
    latents(&sandbox, "zero.safetensors", &[2, 4, 16, 16], 0.0);
    latents(&sandbox, "one.safetensors", &[2, 4, 16, 16], 1.0);
    latents(&sandbox, "wide.safetensors", &[2, 4, 16, 24], 0.0);
    latents(&sandbox, "flat.safetensors", &[2, 4, 16], 0.0);
    let image = |options: &str, output: &str| {
        sandbox.ok(&format!("{LINE} --count 2 {options} --output {output}"));
        read_rgb(&sandbox.path(&format!("{output}/images/im_0_p0.png"))).unwrap().pixels
    };
    let (noise, zero) = (image("", "noise"), image("--latents zero.safetensors", "zero"));
    assert_ne!(zero, noise);
    assert_ne!(image("--latents one.safetensors", "one"), zero);
    assert_eq!(image("--latents zero.safetensors --seed 9", "nine"), zero, "the seed has no say");
    for (output, part) in [("noise", "start noise there, latents "), ("zero", "start latents ")] {
        sandbox.fails(&format!("{LINE} --count 2 --latents one.safetensors --output {output}"), 2, &[output, part]);
    }

    for (file, found) in [("wide", "[2, 4, 16, 24]"), ("flat", "[2, 4, 16]")] {
        let parts = [&format!("{file}.safetensors"), "[N, 4, 16, 16]", found];
        sandbox.fails(&format!("{LINE} --count 2 --latents {file}.safetensors"), 3, &parts);
    }
    sandbox.fails(&format!("{LINE} --count 3 --latents zero.safetensors"), 3, &["image 2", "2 latents"]);
    sandbox.fails(&format!("{LINE} --count 3 --latents none.safetensors"), 3, &["none.safetensors"]);
    let other = "base/model/vae/diffusion_pytorch_model.safetensors";
    sandbox.fails(&format!("{LINE} --latents {other}"), 3, &["none of that name"]);
}

#[test]
fn a_model_that_draws_one_colour_is_named() {
    let sandbox = Sandbox::new();
    let path = "base/model/vae/diffusion_pytorch_model.safetensors";
    let file = SafetensorsFile::open(&sandbox.path(path)).unwrap();
    let load = |name: String| {
        let tensor = file.load(&name, &Device::Cpu).unwrap();
        let tensor = if name.starts_with("decoder.conv_out.") { tensor.zeros_like().unwrap() } else { tensor };
        (name, tensor)
    };
    let tensors: BTreeMap<_, _> = file.shapes().into_keys().map(load).collect();
    drop(file);
    datum::io::weights::save(&sandbox.path(path), &tensors, &BTreeMap::new()).unwrap();
    sandbox.fails(&format!("{LINE} --count 2 --output out"), 4, &["nothing but one colour", "3 other seeds", "--dtype f32"]);
    assert!(!sandbox.path("out/images").exists() && sandbox.text("out/manifest.jsonl").is_empty());
    // Given latents have no other seed: their pictures are kept, and said to be blank.
    latents(&sandbox, "noise.safetensors", &[2, 4, 16, 16], 0.5);
    let kept = sandbox.ok(&format!("{LINE} --count 2 --latents noise.safetensors --output given"));
    for part in ["images/im_1_p1.png shows nothing: one colour, from the latents given", "2 of 2 images show nothing"] {
        assert!(kept.stderr.contains(part), "{}", kept.stderr);
    }
    assert_eq!(manifest(&sandbox, "given/manifest.jsonl"), [0, 1]);
}

#[test]
fn images_say_how_they_were_made() {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{LINE} --count 2 --seed 7 --negative-prompt rain --guidance-scale 3 --scheduler ddim --output out"));
    let path = sandbox.path("out/images/im_1_p1.png");
    let facts = png_text::read_facts(&path).unwrap().unwrap();
    assert_eq!((facts.index, facts.seed, facts.steps, facts.guidance_scale), (1, 8, 2, 3.0));
    assert_eq!((facts.prompt.as_str(), facts.negative_prompt.as_str()), ("a photo of sks traffic signs", "rain"));
    let parameters = &png_text::read_texts(&path).unwrap()["parameters"];
    assert!(parameters.contains("Negative prompt: rain") && parameters.contains("Seed: 8"), "{parameters}");
}

#[test]
fn initial_photos_need_a_solver_that_can_start_from_them() {
    let sandbox = Sandbox::new();
    let line = format!("{LINE} --steps 4 --count 2 --init-images photos --height 32 --width 48").replace("--steps 2 ", "");
    sandbox.fails(&line, 2, &["pndm cannot start from a photo", "--scheduler ddim"]);
    let image = |options: &str, output: &str| {
        sandbox.ok(&format!("{line} --scheduler ddim {options} --output {output}"));
        read_rgb(&sandbox.path(&format!("{output}/images/im_0_p0.png"))).unwrap().pixels
    };
    let half = image("--strength 0.5", "out");
    assert_ne!(image("--strength 0.25", "quarter"), half);
    assert_ne!(image("--strength 0 --seed 1", "none"), half);
    assert_eq!(image("--strength 0 --seed 2", "again"), image("--strength 0 --seed 1", "none"), "nothing random in it");
    sandbox.fails(&format!("{line} --scheduler ddim --strength 0.25 --output out"), 2, &["strength 0.5 there", "0.25 wanted"]);
    for strength in ["-0.1", "1.5"] {
        sandbox.fails(&format!("{line} --scheduler ddim --strength={strength}"), 2, &["from 0 to 1"]);
    }
    let dark = RgbImage { height: 32, width: 48, pixels: [[20, 25, 40]; 32 * 48].concat() };
    images::write_png(&sandbox.path("dusk.png"), &dark, &[]).unwrap();
    assert_ne!(image("--strength 0.5 --init-style dusk.png", "dusk"), half);
    let facts = png_text::read_facts(&sandbox.path("dusk/images/im_0_p0.png")).unwrap().unwrap();
    assert!(facts.start.contains("strength 0.5 style ") && facts.start.ends_with("bandwidth 0.01"), "{}", facts.start);
    let prompted = image("--strength 0.5 --init-style prompt", "prompted");
    assert_ne!(prompted, half);
    assert_eq!(image("--strength 0.5 --init-style prompt --batch-size 2", "together"), prompted);
    let facts = png_text::read_facts(&sandbox.path("prompted/images/im_0_p0.png")).unwrap().unwrap();
    assert!(facts.start.ends_with("strength 0.5 style prompt steps 4"), "{}", facts.start);
    assert_ne!(image("--strength 0.5 --init-style prompt --set init_style_steps=1", "fewer"), prompted);
    let alone = line.replace("--init-images photos", "--init-style dusk.png");
    sandbox.fails(&format!("{alone} --scheduler ddim"), 2, &["--init-images"]);
    sandbox.write("photos/broken.png", b"no picture");
    assert!(sandbox.ok(&format!("{line} --scheduler ddim --output o2")).stderr.contains("broken.png"));
}

#[test]
fn every_solver_works_and_wrong_values_are_named() {
    let sandbox = Sandbox::new();
    for scheduler in ["ddim", "ddpm", "euler", "dpmpp-2m"] {
        sandbox.ok(&format!("{LINE} --count 1 --scheduler {scheduler} --output {scheduler}"));
    }
    sandbox.fails(&format!("{LINE} --scheduler heun"), 2, &["heun", "dpmpp-2m"]);
    sandbox.fails("generate --model base", 2, &["needs prompts", "--prompts things.txt"]);
    sandbox.fails("generate --prompts thing.txt --model base", 3, &["thing.txt", "things.txt"]);
    sandbox.fails("generate --prompts things.txt --model nowhere", 3, &["nowhere", "diffusers folder"]);
    sandbox.fails(&format!("{LINE} --height 33"), 2, &["--height 33", "multiple of 2"]);
    sandbox.fails(&format!("{LINE} --lora none.safetensors"), 3, &["none.safetensors"]);
    sandbox.fails("generate --prompts things.txt --model base --steps 0", 2, &["1 to 1000 sampling steps"]);
    sandbox.fails(&format!("{LINE} --output photos"), 2, &["photos is not empty", "`--resume latest` where the command has it"]);
    let before = sandbox.files();
    for (flags, parts) in [
        ("--count 0", ["--count 0", "1 to 10000000"]),
        ("--count 9000000000000000000 --plan", ["--count 9000000000000000000", "1 to 10000000"]),
        ("--width 100000000000", ["--width 100000000000", "at most 16384 pixels"]),
        ("--height 16386", ["--height 16386", "at most 16384 pixels"]),
        ("--width 16384 --height 16384", ["--width 16384 --height 16384", "16777216 pixels in all"]),
        ("--guidance-scale nan", ["--guidance-scale NaN", "finite"]),
    ] {
        sandbox.fails(&format!("{LINE} {flags} --output out"), 2, &parts);
    }
    assert_eq!(sandbox.files(), before);
}
