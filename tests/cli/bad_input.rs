//! Bad files, values and surroundings: one clear error, the right exit code, nothing half-written.

use super::support::{ADAPT, PERSONALIZE, PRETRAIN, SIZE, Sandbox, lines, outcome};
use datum::io::images::{GrayImage, RgbImage, write_gray_png, write_gray16_png, write_palette_png, write_png};

fn golden(name: &str) -> String {
    format!("{}/tests/golden/torch_files/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A tiny finished adaptation in `adapted`.
fn adapted() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{ADAPT} --strategy source-only --iterations 1 --output adapted"));
    sandbox
}

#[test]
fn photos_that_cannot_be_used_are_named() {
    let sandbox = Sandbox::new();
    let personalize = |photo: &str| PERSONALIZE.replace("photos/p0.png", photo);
    sandbox.write("text.png", b"not a picture");
    let whole = sandbox.read("photos/p0.png");
    sandbox.write("cut.png", &whole[..whole.len() / 2]);
    sandbox.write("empty.png", b"");
    write_png(&sandbox.path("dot.png"), &RgbImage { height: 1, width: 1, pixels: vec![1, 2, 3] }, &[]).unwrap();
    let line = format!("{} --output out", personalize("text.png"));
    for (photo, part) in
        [("missing.png", "check the path"), ("text.png", "expected"), ("cut.png", "expected"), ("empty.png", "expected")]
    {
        sandbox.fails(&format!("{} --output out", personalize(photo)), 3, &[photo, part]);
    }
    sandbox.fails(&format!("{} --output out", personalize("dot.png")), 3, &["dot.png", "at least 8x8", "found 1x1"]);
    sandbox.fails(&personalize("photos"), 3, &["photos", "a folder"]);
    sandbox.fails("personalize --base base", 2, &["datum personalize target.png"]);
    // A run that did nothing does not block its folder.
    sandbox.write("text.png", &whole);
    sandbox.ok(&format!("{line} --method lora --steps 1"));
    sandbox.fails(&line, 2, &["out is not empty"]);
}

#[test]
fn photos_of_any_depth_work() {
    let sandbox = Sandbox::new();
    let (height, width) = SIZE;
    let gray: Vec<u8> = (0..height * width).map(|i| (i % 200) as u8).collect();
    let deep = GrayImage { height, width, pixels: gray.iter().map(|&v| u16::from(v) * 257).collect() };
    write_gray_png(&sandbox.path("gray.png"), SIZE, &gray, &[]).unwrap();
    write_gray16_png(&sandbox.path("deep.png"), &deep, &[]).unwrap();
    let indices: Vec<u8> = gray.iter().map(|v| v % 2).collect();
    write_palette_png(&sandbox.path("palette.png"), SIZE, &indices, &[[200, 10, 10], [10, 10, 200]], &[]).unwrap();
    for name in ["gray", "deep", "palette"] {
        let line = PERSONALIZE.replace("photos/p0.png", &format!("{name}.png"));
        sandbox.ok(&format!("{line} --method lora --steps 1 --output {name}"));
    }
}

#[test]
fn folders_and_captions_are_checked() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("nothing")).unwrap();
    let pretrain = |images: &str| PRETRAIN.replace("--images photos", images) + " --set vae.steps=1 --set unet.steps=1";
    sandbox.fails(&pretrain("--images nothing"), 3, &["nothing", "no image"]);
    sandbox.fails(&pretrain("--images nowhere"), 3, &["nowhere"]);
    sandbox.fails(&pretrain(""), 2, &["--images FOLDER"]);
    sandbox.fails(&format!("{ADAPT} --target nothing"), 3, &["nothing", "found none"]);
    sandbox.write("captions.jsonl", b"{\"file_name\": \"p0.png\", \"text\": \"cars\"}\n{\"file\": 1}\n");
    sandbox.fails(&format!("{} --captions captions.jsonl", pretrain("--images photos")), 3, &["captions.jsonl", "line 2"]);
    sandbox.write("captions.jsonl", b"{\"file_name\": \"p0.png\", \"text\": [\"cars\", \"a bus\"]}\n");
    sandbox.write("photos/broken.png", b"no picture");
    let trained = sandbox.ok(&format!("{} --captions captions.jsonl --output out", pretrain("--images photos")));
    for part in ["1 of 4 photos have their own", "broken.png"] {
        assert!(trained.stderr.contains(part), "{}", trained.stderr);
    }
}

#[test]
fn labels_of_pretraining_are_checked() {
    let sandbox = Sandbox::new();
    let line = format!("{PRETRAIN} --labels set/labels --set vae.steps=1 --set unet.steps=2");
    sandbox.fails(&format!("{line} --set unet.label_classes=0"), 2, &["unet.label_classes 0", "1 to 255"]);
    sandbox.fails(&format!("{line} --set unet.class_weights=[1,2]"), 2, &["2 numbers", "label_classes is 19", "each train id"]);
    sandbox.fails(&format!("{line} --set unet.label_classes=2 --set unet.class_weights=[1,-2]"), 2, &["holds -2", "from 0 on"]);
    sandbox.fails(&format!("{line} --set unet.label_classes=1 --set unet.batch_size=8"), 3, &["train ids 0 to 0", "ids up to 2"]);
    sandbox.fails(&format!("{line} --set vae.equivariance=0.5 --set vae.crop=30"), 2, &["vae.crop 30", "4", "twice"]);
    sandbox.ok(&format!("{line} --output out"));
    let metrics = lines(&sandbox.path("out/metrics-unet.jsonl"));
    assert!(metrics.len() == 2 && metrics.iter().all(|step| step.contains("\"label_loss\":")), "{metrics:?}");
    write_gray_png(&sandbox.path("set/labels/p0.png"), (3, 2), &[0; 6], &[]).unwrap();
    sandbox.fails(&format!("{line} --set unet.batch_size=8"), 3, &["p0.png", "the size of its photo", "3x2"]);
    std::fs::remove_file(sandbox.path("set/labels/p0.png")).unwrap();
    sandbox.fails(&line, 3, &["set/labels", "1 of 4 photos", "p0.png"]);
}

#[test]
fn labels_that_do_not_fit_are_named() {
    let sandbox = adapted();
    let line = format!("{ADAPT} --strategy source-only --iterations 1");
    let label = sandbox.read("set/labels/p1.png");
    write_gray_png(&sandbox.path("set/labels/p1.png"), SIZE, &[7; 32 * 48], &[]).unwrap();
    for command in [&line, "evaluate --checkpoint adapted --dataset set.toml"] {
        sandbox.fails(command, 3, &["set/labels/p1.png", "ids 0 to 2 or 255", "7", "[id_map]"]);
    }
    write_gray_png(&sandbox.path("set/labels/p1.png"), (16, 16), &[1; 256], &[]).unwrap();
    let size = ["set/labels/p1.png", "48x32", "16x16"];
    sandbox.fails("evaluate --checkpoint adapted --dataset set.toml", 3, &size);
    // A training leaves out what does not fit together, and says so.
    let warned = sandbox.ok(&format!("{line} --output without")).stderr;
    assert!(warned.contains("1 of 4 images") && size.iter().all(|part| warned.contains(part)), "{warned}");
    std::fs::remove_file(sandbox.path("set/labels/p1.png")).unwrap();
    sandbox.fails(&line, 3, &["set/labels/p1.png", "no file"]);
    sandbox.write("set/labels/p1.png", &label);
    sandbox.fails("adapt --source photos --strategy source-only", 2, &["photos", "no labels"]);
    sandbox.fails("adapt --strategy source-only", 2, &["--source NAME=ROOT"]);
    sandbox.fails(ADAPT, 2, &["--target DATASET|FOLDER"]);
    sandbox.fails("adapt --source cityscape=set", 3, &["cityscape", "did you mean `cityscapes`"]);
    // One broken photo among many is reported and left out.
    sandbox.write("set/images/p9.png", b"no picture");
    let scored = sandbox.ok("evaluate --checkpoint adapted --dataset set.toml");
    assert!(scored.stderr.contains("p9.png") && scored.stdout.contains("over 4 images"), "{}{}", scored.stderr, scored.stdout);
    assert!(sandbox.ok(&format!("{line} --output again")).stderr.contains("p9.png"));
    let predicted = sandbox.ok("predict --checkpoint adapted set/images --output out --json");
    assert!(predicted.stdout.contains("\"written\":4,\"unreadable\":1"), "{}", predicted.stdout);
    sandbox.fails("predict --checkpoint adapted set/images/p9.png --output out", 3, &["p9.png"]);
    sandbox.write("junk/a.png", b"no picture");
    sandbox.fails("predict --checkpoint adapted junk --output out", 3, &["a.png"]);
}

#[test]
fn checkpoints_that_do_not_fit_are_refused() {
    let sandbox = adapted();
    let file = "adapted/segmenter.safetensors";
    let bytes = sandbox.read(file);
    sandbox.write("two.toml", sandbox.text("set.toml").replace(", \"car\"", "").as_bytes());
    sandbox.fails("evaluate --checkpoint adapted --dataset two.toml", 3, &["2 classes of `two`", "3 classes (sky, road, car)"]);
    let rest = "truncated";
    for (length, what) in
        [(0, "an empty file"), (5, "bytes of another format"), (100, rest), (bytes.len() / 2, rest), (bytes.len() - 1, rest)]
    {
        sandbox.write("cut.safetensors", &bytes[..length]);
        sandbox.fails("evaluate --checkpoint cut.safetensors --dataset set.toml", 3, &["cut.safetensors", what]);
    }
    let unet = "base/model/unet/diffusion_pytorch_model.safetensors";
    sandbox.fails(&format!("predict --checkpoint {unet} photos --output x"), 3, &["a segmenter written by `datum adapt`"]);
    sandbox.fails("predict --checkpoint base photos --output x", 3, &["base", "a finished run with segmenter.safetensors"]);
    sandbox.fails("predict --checkpoint nowhere photos --output x", 3, &["nowhere"]);

    let weights = sandbox.read(unet);
    sandbox.write(unet, &weights[..weights.len() - 8]);
    sandbox.fails(PERSONALIZE, 3, &["unet/diffusion_pytorch_model.safetensors", "truncated"]);
    sandbox.fails("generate --prompts things.txt --model base", 3, &["truncated"]);
    sandbox.write(unet, &sandbox.read("base/model/vae/diffusion_pytorch_model.safetensors"));
    sandbox.fails(PERSONALIZE, 3, &["unet"]);
    std::fs::remove_file(sandbox.path(unet)).unwrap();
    sandbox.fails(PERSONALIZE, 3, &["unet"]);
}

#[test]
fn encoder_weights_are_read_strictly_and_never_run() {
    let sandbox = Sandbox::new();
    let line = format!("{ADAPT} --strategy source-only --iterations 1 --encoder-weights");
    for name in ["evil.pth", "evil-inside.pth", "evil-beside.pth", "evil-legacy.pth", "flat.pth"] {
        sandbox.fails(&format!("{line} {}", golden(name)), 3, &[name]);
    }
    assert!(!sandbox.has("evil") && !sandbox.has("runs/evil"));
    sandbox.write("text.pth", b"hello");
    sandbox.fails(&format!("{line} text.pth"), 3, &["text.pth"]);
    sandbox.fails(&format!("{line} none.pth"), 3, &["none.pth"]);
    sandbox.fails(
        &format!("{line} base/model/vae/diffusion_pytorch_model.safetensors"),
        3,
        &["diffusion_pytorch_model.safetensors"],
    );
}

#[test]
fn unknown_keys_get_a_suggestion() {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", b"[adapt]\niteration = 5\n");
    sandbox.fails(
        "adapt --source set.toml --recipe recipe.toml",
        2,
        &["recipe.toml", "`iteration`", "did you mean `iterations`"],
    );
    sandbox.write("recipe.toml", b"iterations = \n");
    sandbox.fails("adapt --source set.toml --recipe recipe.toml", 3, &["recipe.toml"]);
    sandbox.fails("adapt --source set.toml --recipe camvid-dask", 2, &["did you mean `camvid-dusk`"]);
    sandbox.write("wrong.toml", b"image = \"*.png\"\n");
    sandbox.fails("adapt --source wrong.toml --strategy source-only", 3, &["wrong.toml", "`image`", "did you mean `images`"]);
    sandbox.fails(&format!("{PERSONALIZE} --set crop_siz=3"), 2, &["`crop_siz` (`--set`)", "did you mean `crop_size`"]);
    sandbox.fails(&format!("{PERSONALIZE} --set steps"), 2, &["has no `=`"]);
    sandbox.fails(&PERSONALIZE.replace("--crop-size 32", "--crop-size 1"), 2, &["--crop-size 1", "2x2 pixels"]);
    let strip = RgbImage { height: 8, width: 40_000, pixels: vec![90; 3 * 8 * 40_000] };
    write_png(&sandbox.path("photos/strip.png"), &strip, &[]).unwrap();
    let line = PERSONALIZE.replace("p0.png", "strip.png").replace("--resolution 32", "--resolution 512");
    sandbox.fails(&line, 3, &["strip.png", "40000x8, which would become 2560000 long", "cut out"]);
    sandbox.fails(&format!("{PERSONALIZE} --set steps=many"), 2, &["`steps`", "many"]);
    let mut command = sandbox.datum(PERSONALIZE);
    outcome(command.env("DATUM_SET_RNAK", "3")).failed("environment", 2, &["environment DATUM_SET_RNAK", "did you mean `rank`"]);
}

#[test]
fn values_of_zero_are_refused_before_anything_is_written() {
    let sandbox = Sandbox::new();
    let before = sandbox.files();
    for key in ["size.height", "vae.crop", "vae.batch_size", "vae.latent_channels", "unet.batch_size"] {
        let line = PRETRAIN.split(&format!("--set {key}=")).next().unwrap().to_string() + &format!(" --set {key}=0");
        sandbox.fails(&line, 2, &[&format!("`{key}` is 0")]);
    }
    for key in ["rank", "train_batch_size", "gradient_accumulation_steps"] {
        sandbox.fails(&format!("{PERSONALIZE} --set {key}=0"), 2, &[&format!("`{key}` is 0")]);
    }
    for key in ["crop.width", "iterations"] {
        sandbox.fails(&format!("adapt --source set.toml --strategy source-only --set {key}=0"), 2, &[&format!("`{key}` is 0")]);
    }
    assert_eq!(sandbox.files(), before);
    sandbox.fails(&PERSONALIZE.replace("--crop-size 32", "--crop-size 33"), 2, &["--crop-size 33", "--resolution 32"]);
    let odd = PRETRAIN.replace("vae.crop=32", "vae.crop=31");
    sandbox.fails(&odd, 2, &["vae.crop 31", "multiple of 2"]);
}

#[test]
fn sizes_and_learning_rates_that_cannot_be_are_refused() {
    let sandbox = Sandbox::new();
    let before = sandbox.files();
    for (flag, other, part) in [
        ("--resolution 32", "--resolution 100000000000", "at most 16384 pixels"),
        ("--crop-size 32", "--crop-size 5000", "at most 4096 pixels"),
    ] {
        sandbox.fails(&PERSONALIZE.replace(flag, other), 2, &[part]);
    }
    for (value, shown) in [("nan", "NaN"), ("inf", "inf"), ("-1e-4", "-0.0001")] {
        let part = format!("`learning_rate` is {shown}");
        for line in [PERSONALIZE, "adapt --source set.toml --strategy source-only"] {
            sandbox.fails(&format!("{line} --set learning_rate={value}"), 2, &[&part, "a finite number"]);
        }
    }
    assert_eq!(sandbox.files(), before);
    // A model may ask for too much as well.
    let file = "base/model/unet/config.json";
    let mut config: serde_json::Value = serde_json::from_str(&sandbox.text(file)).unwrap();
    config["sample_size"] = 100_000.into();
    sandbox.write(file, config.to_string().as_bytes());
    sandbox.fails("generate --prompts things.txt --model base --output out", 2, &["--height 200000", "at most 16384 pixels"]);
}

/// At a 32nd of the size, a crop of 32 pixels is one value per channel.
#[test]
fn crops_too_small_for_batch_norm_are_refused() {
    let line = format!("{ADAPT} --strategy source-only --iterations 1 --output out").replace("mit-b0", "efficientnet-lite0");
    Sandbox::new().fails(&line, 3, &["one value per channel", "larger crops, or more images a step"]);
}

#[test]
fn what_the_machine_cannot_do_ends_with_4() {
    let sandbox = Sandbox::new();
    for flag in ["--device cuda", "--device cuda:3", "--device metal", "--dtype f16"] {
        sandbox.fails(&format!("{PERSONALIZE} {flag}"), 4, &["next: leave"]);
    }
    sandbox.fails("personalize photos/p0.png", 4, &["CompVis/stable-diffusion-v1-4", "offline", "a folder", "HF_HUB_CACHE"]);
    sandbox.fails("generate --prompts things.txt --model lab/none", 4, &["lab/none", "offline"]);
}

#[test]
fn a_file_in_the_place_of_a_folder_is_named() {
    let sandbox = Sandbox::new();
    sandbox.write("file", b"");
    sandbox.fails(&format!("{PERSONALIZE} --output file/out"), 3, &["file/out", "next: "]);
    let adapted = adapted();
    adapted.write("file", b"");
    adapted.fails("predict --checkpoint adapted photos --output file/out", 3, &["file/out", "next: "]);
}

#[test]
fn a_full_disk_leaves_no_half_file() {
    let sandbox = Sandbox::new();
    let line = format!("{ADAPT} --strategy source-only --iterations 2 --output out");
    let mut limited = sandbox.command("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_datum")]);
    outcome(limited.args(line.split_whitespace())).failed("with a limit on files", 4, &["out/checkpoints"]);
    let files: Vec<_> = sandbox.contents("out").into_keys().collect();
    assert!(files.iter().all(|file| file.extension().is_none_or(|e| e != "safetensors")), "{files:?}");
    // The same run goes on where there is room.
    sandbox.ok(&format!("{line} --resume latest"));
    assert!(sandbox.has("out/segmenter.safetensors"));
}

#[test]
fn a_model_that_gives_no_numbers_writes_no_picture() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("base/model/vae/diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    let bias = tensors["decoder.conv_out.bias"].affine(0.0, f64::NAN).unwrap();
    tensors.insert("decoder.conv_out.bias".into(), bias);
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let line = "generate --prompts things.txt --model base --count 1 --steps 1";
    sandbox.fails(&format!("{line} --output out"), 4, &["seed 0", "not numbers", "lower learning rate"]);
    assert!(!sandbox.has("out/images"), "no black picture");
}

/// Names of files may be any bytes.
#[cfg(unix)]
fn latin_1(text: &str) -> std::ffi::OsString {
    std::os::unix::ffi::OsStringExt::from_vec(text.chars().map(|c| c as u8).collect())
}

#[cfg(unix)]
#[test]
fn results_in_folders_of_any_name_are_told() {
    let sandbox = adapted();
    let [datum, clouds] = [env!("CARGO_BIN_EXE_datum"), env!("CARGO_BIN_EXE_clouds")];
    for (program, name, line) in [
        (datum, "drawn", "dataset render-street --count 1 --width 32 --height 32"),
        (datum, "pre", &format!("{PRETRAIN} --set vae.steps=1 --set unet.steps=1")),
        (datum, "own", &format!("{PERSONALIZE} --method lora --steps 1")),
        (datum, "made", "generate --prompts things.txt --model base --count 1 --steps 1"),
        (datum, "trained", &format!("{ADAPT} --strategy source-only --iterations 1")),
        (datum, "seeds", &format!("{ADAPT} --strategy source-only --iterations 1 --seeds 0,1")),
        (datum, "seen", "predict --checkpoint adapted photos"),
        (datum, "manual", "man"),
        (clouds, "list", "prompts --count 2"),
        (clouds, "masks", "masks photos/p0.png"),
        (clouds, "clean", "refine --images set/images --labels set/labels --classes set.toml"),
    ] {
        let mut command = sandbox.command(program);
        command.args(line.split_whitespace()).arg("--json").arg("--output").arg(latin_1(&format!("{name}-café")));
        let done = outcome(&mut command);
        assert_eq!(done.status.code(), Some(0), "{line}\n{}", done.stderr);
        assert!(name == "masks" || done.stdout.contains(&format!("{name}-caf\u{fffd}")), "{line}: {}", done.stdout);
    }
    let report = outcome(sandbox.datum("report").arg(latin_1("drawn-café")).arg("--json"));
    assert!(report.stdout.contains("drawn-caf\u{fffd}/report.html"), "{}{}", report.stdout, report.stderr);
    let here = sandbox.path("here").with_file_name(latin_1("here-café"));
    std::fs::create_dir(&here).unwrap();
    let doctor = outcome(sandbox.datum("doctor --json").current_dir(&here));
    assert!(doctor.stdout.contains("here-caf\u{fffd}/runs"), "{}{}", doctor.stdout, doctor.stderr);
}

#[cfg(unix)]
#[test]
fn variables_may_hold_anything_unless_they_are_settings() {
    let sandbox = Sandbox::new();
    let line = "dataset render-street --count 1 --width 32 --height 32 --output";
    let other = outcome(sandbox.datum(&format!("{line} drawn")).env("OTHER", latin_1("café")));
    assert_eq!(other.status.code(), Some(0), "{}", other.stderr);
    let ours = outcome(sandbox.datum(&format!("{line} never")).env("DATUM_SET_LOOK", latin_1("café")));
    ours.failed("a setting", 2, &["environment DATUM_SET_LOOK", "UTF-8", "next: correct the variable"]);
    assert!(!sandbox.has("never"));
}

#[cfg(unix)]
#[test]
fn entries_that_cannot_be_followed_are_left_out_and_counted() {
    let sandbox = adapted();
    std::os::unix::fs::symlink("gone.png", sandbox.path("photos/p9.png")).unwrap();
    let predicted = sandbox.ok("predict --checkpoint adapted photos --output out --json");
    assert!(predicted.stdout.contains("\"written\":4,\"unreadable\":1"), "{}", predicted.stdout);
    std::os::unix::fs::symlink("nowhere", sandbox.path("photos/more")).unwrap();
    let trained = sandbox.ok(&format!("{PRETRAIN} --set vae.steps=1 --set unet.steps=1 --output small"));
    for part in ["2 of 6 images can't be read and are left out", "photos/more", "a link that leads nowhere"] {
        assert!(trained.stderr.contains(part), "{part}: {}", trained.stderr);
    }
    sandbox.fails("predict --checkpoint adapted photos --output out", 3, &["photos/more", "a link that leads nowhere"]);

    let bytes = sandbox.read("set/images/p0.png");
    std::fs::write(sandbox.path("set/images").join(latin_1("café.png")), bytes).unwrap();
    let scored = sandbox.ok("evaluate --checkpoint adapted --dataset set.toml");
    for part in ["1 of 5 images can't be read and are left out", "rename the file or its folder"] {
        assert!(scored.stderr.contains(part), "{part}: {}", scored.stderr);
    }
}
