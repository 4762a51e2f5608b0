//! Generation: every image depends on its number alone, and restarts make what is missing.

use super::support::Sandbox;
use candle_core::{Device, Tensor};
use datum::io::images::{self, RgbImage, read_rgb};
use datum::io::png_text;
use std::collections::BTreeMap;

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

    // Other settings make other images, and none of the old ones stays.
    sandbox.write("one.txt", b"a photo of {identifier} cars");
    sandbox.ok(&line.replace("things.txt", "one.txt"));
    let names: Vec<_> = sandbox.contents("out/images").into_keys().collect();
    assert_eq!(names, ["im_0_p0.png", "im_1_p0.png", "im_2_p0.png", "im_3_p0.png"].map(std::path::PathBuf::from));
}

#[test]
fn given_latents_replace_the_noise() {
    let sandbox = Sandbox::new();
    latents(&sandbox, "zero.safetensors", &[2, 4, 16, 16], 0.0);
    latents(&sandbox, "one.safetensors", &[2, 4, 16, 16], 1.0);
    latents(&sandbox, "wide.safetensors", &[2, 4, 16, 24], 0.0);
    latents(&sandbox, "flat.safetensors", &[2, 4, 16], 0.0);
    let line = format!("{LINE} --count 2 --output out");
    let image = || read_rgb(&sandbox.path("out/images/im_0_p0.png")).unwrap().pixels;
    sandbox.ok(&line);
    let noise = image();
    sandbox.ok(&format!("{line} --latents zero.safetensors"));
    let zero = image();
    assert_ne!(zero, noise);
    sandbox.ok(&format!("{line} --latents one.safetensors"));
    assert_ne!(image(), zero, "other latents in the same folder make other images");
    sandbox.ok(&format!("{line} --latents zero.safetensors --seed 9"));
    assert_eq!(image(), zero, "the seed has no say");

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
    assert_ne!(image("--strength 0.25", "out"), half, "another strength in the same folder makes other images");
    assert_ne!(image("--strength 0 --seed 1", "out"), half);
    assert_eq!(image("--strength 0 --seed 2", "out"), image("--strength 0 --seed 1", "out"), "nothing random in it");
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
    assert_ne!(image("--strength 0.5 --init-style prompt --set init_style_steps=1", "prompted"), prompted, "made anew");
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
}
