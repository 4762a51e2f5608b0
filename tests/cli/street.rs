//! `datum dataset render-street`

use super::support::{PRETRAIN, Sandbox};

const RENDER: &str = "dataset render-street --count 12 --width 48 --height 32 --look day,dusk";

#[test]
fn a_rendered_folder_feeds_the_other_verbs() {
    let sandbox = Sandbox::new();
    let out = sandbox.ok(&format!("{RENDER} --output street --json"));
    let result: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!((result["made"].as_u64(), result["kept"].as_u64()), (Some(12), Some(0)));
    assert_eq!(result["images"], "street/images");
    for file in ["recipe.toml", "environment.json", "captions.jsonl", "manifest.jsonl", "train.txt", "labels/000011.png"] {
        assert!(sandbox.has(&format!("street/{file}")), "{file}");
    }
    let pretrain = PRETRAIN.replace("--images photos", "--images street/images --captions street/captions.jsonl");
    let trained = sandbox.ok(&format!("{pretrain} --set vae.steps=1 --set unet.steps=1 --output small"));
    assert!(trained.stderr.contains("12 of 12 photos have their own"), "{}", trained.stderr);
    // Another U-Net behind the same autoencoder.
    sandbox.ok(&format!("{pretrain} --set vae.base=small --set unet.layers_per_block=2 --set unet.steps=1 --output other"));
    let (unet, vae) = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors");
    let read = |folder: &str, file: &str| sandbox.read(&format!("{folder}/model/{file}"));
    assert_eq!(read("small", vae), read("other", vae));
    assert!(read("other", unet).len() > read("small", unet).len());
    assert!(!sandbox.has("other/metrics-vae.jsonl"), "no autoencoder is trained");
    sandbox.fails(&format!("{pretrain} --set vae.base=small --base other"), 2, &["vae.base = small", "leave one"]);
    let scores = "evaluate --predictions street/labels --dataset street=street --json";
    let scores: serde_json::Value = serde_json::from_str(&sandbox.ok(scores).stdout).unwrap();
    assert_eq!(scores["mIoU"].as_f64(), Some(1.0));
}

#[test]
fn the_same_command_goes_on() {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{RENDER} --output whole --threads 2"));
    sandbox.killed(&format!("{} --output cut", RENDER.replace("12", "400")), "cut/images/000000.png");
    let cut = sandbox.ok(&format!("{RENDER} --output cut --json"));
    assert!(cut.stdout.contains("\"run\":\"cut\""), "{}", cut.stdout);
    for index in 0..12 {
        for folder in ["images", "labels"] {
            let name = format!("{folder}/{index:06}.png");
            assert_eq!(sandbox.read(&format!("whole/{name}")), sandbox.read(&format!("cut/{name}")), "{name}");
        }
    }
    let line = |name: &str| sandbox.text(name).lines().next().map(str::to_string);
    assert_eq!(line("whole/captions.jsonl"), line("cut/captions.jsonl"));
    let numbered = sandbox.ok("dataset render-street --count 1 --size 48x32 --quiet");
    assert!(numbered.stdout.contains("render-street_1/images") && numbered.stderr.is_empty(), "{}", numbered.stderr);
}

#[test]
fn bad_input_is_explained_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let before = sandbox.files();
    for (flags, parts) in [
        ("--width 0", ["--width 0", "16 to 4096"]),
        ("--height 99999", ["--height 99999", "16 to 4096"]),
        ("--count 0", ["--count 0", "1 to"]),
        ("--look day,nigth", ["`nigth`", "did you mean `night`?"]),
    ] {
        sandbox.fails(&format!("dataset render-street {flags} --output out"), 2, &parts);
    }
    sandbox.fails("dataset render-street --size 512", 2, &["512x256"]);
    sandbox.fails("dataset render-street --size 64x32 --width 64", 2, &["--size <WxH>", "--width <W>"]);
    sandbox.fails("dataset render-street --look", 2, &["--look <NAME>"]);
    sandbox.fails("dataset render", 2, &["render-street"]);
    assert_eq!(sandbox.files(), before);
    sandbox.fails("dataset render-street --count 1 --output photos", 2, &["photos is not empty"]);
    sandbox.write("file", b"");
    let outcome = sandbox.run("dataset render-street --count 1 --output file/out");
    assert_eq!(outcome.status.code(), Some(3), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("file/out"), "{}", outcome.stderr);
}
