//! The three stages and what follows, as a user runs them.

use super::support::{ADAPT, PERSONALIZE, PRETRAIN, SIZE, Sandbox, draw, lines};
use datum::io::images::{read_label, read_rgb};
use serde_json::Value;

/// Runs a command that may write below `output` alone.
fn writes_only(sandbox: &Sandbox, line: &str, output: &str) -> String {
    let before = sandbox.files();
    let stdout = sandbox.ok(&format!("{line} --output {output}")).stdout;
    for file in sandbox.files().difference(&before) {
        assert!(file.starts_with(output), "datum {line} wrote {}", file.display());
    }
    stdout
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn from_photos_to_a_scored_segmenter() {
    let sandbox = Sandbox::new();
    let line = format!("{PRETRAIN} --set vae.steps=2 --set unet.steps=2 --set unet.prediction_type=v_prediction --json");
    let result = json(&writes_only(&sandbox, &line, "small"));
    assert_eq!(result["model"], "small/model");
    assert_eq!(
        (lines(&sandbox.path("small/metrics-vae.jsonl")).len(), lines(&sandbox.path("small/metrics-unet.jsonl")).len()),
        (2, 2)
    );

    assert!(sandbox.text("small/model/scheduler/scheduler_config.json").contains("\"prediction_type\": \"v_prediction\""));
    let line = format!("{} --steps 2", PERSONALIZE.replace("--base base", "--base small"));
    assert_eq!(writes_only(&sandbox, &line, "mine"), "mine\n");
    for file in ["model/model_index.json", "recipe.toml", "environment.json", "log.jsonl", "metrics.jsonl"] {
        assert!(sandbox.has(&format!("mine/{file}")), "{file}");
    }
    assert!(sandbox.text("mine/recipe.toml").contains("steps = 2  # `--steps`"));

    let line = "generate --prompts things.txt --model mine --count 3 --steps 2 --height 32 --width 48";
    assert_eq!(writes_only(&sandbox, line, "set2"), "set2/images\n");
    assert_eq!(sandbox.contents("set2/images").len(), 3);
    let image = read_rgb(&sandbox.path("set2/images/im_0_p0.png")).unwrap();
    assert_eq!((image.height, image.width), SIZE);

    let source_only = format!("{ADAPT} --strategy source-only --iterations 2");
    assert_eq!(writes_only(&sandbox, &source_only, "source"), "source/segmenter.safetensors\n");
    let daformer = format!("{ADAPT} --target set2/images --set fourier=0.05 --iterations 3 -q");
    assert_eq!(writes_only(&sandbox, &daformer, "adapted"), "adapted/segmenter.safetensors\n");
    let last = json(lines(&sandbox.path("adapted/metrics.jsonl")).last().unwrap());
    assert_eq!(last["step"], 3);
    for (run, part) in [("small", "U-Net: Loss"), ("mine", "photos/p0.png"), ("set2", "All 3 images"), ("adapted", "fourier")] {
        assert!(sandbox.text(&format!("{run}/report.html")).contains(part), "{run}: {part}");
    }

    evaluation(&sandbox);
    prediction(&sandbox);
}

fn evaluation(sandbox: &Sandbox) {
    let before = sandbox.files();
    assert!(sandbox.text("adapted/report.html").contains("there is no scores/"));
    let scores = json(&sandbox.ok("evaluate --checkpoint adapted --dataset set.toml --json").stdout);
    assert_eq!(scores["images"], 4);
    let names: Vec<&Value> = scores["classes"].as_array().unwrap().iter().map(|class| &class["name"]).collect();
    assert_eq!(names, ["sky", "road", "car"]);
    for key in ["mIoU", "mAcc", "aAcc"] {
        assert!((0.0..=1.0).contains(&scores[key].as_f64().unwrap()), "{key}");
    }
    assert!(scores["classes"][0]["iou"].is_number() && scores["classes"][0]["acc"].is_number());

    let table = sandbox.ok("evaluate --checkpoint adapted/segmenter.safetensors --dataset set.toml");
    let miou = format!("mIoU {:.2}", 100.0 * scores["mIoU"].as_f64().unwrap());
    assert!(table.stdout.contains(&miou) && table.stdout.contains("road"), "{}", table.stdout);
    let slide = sandbox.ok("evaluate --checkpoint adapted --dataset set.toml --inference slide --window 32 --stride 16");
    assert!(slide.stdout.contains("over 4 images"), "{}", slide.stdout);

    let gate = sandbox.run("evaluate --checkpoint adapted --dataset set.toml --fail-under 0.99 --json -q");
    assert_eq!(gate.status.code(), Some(1));
    assert_eq!(json(&gate.stdout), scores, "the result is printed before the gate");
    assert!(gate.stderr.contains("is below --fail-under 0.99"), "{}", gate.stderr);
    sandbox.ok("evaluate --checkpoint adapted --dataset set.toml --fail-under 0");
    sandbox.fails("evaluate --checkpoint adapted --dataset set.toml --fail-under 50", 2, &["from 0 to 1"]);
    // The run keeps its scores; the evaluation of the file alone left nothing.
    let kept: Vec<String> = sandbox.files().difference(&before).map(|file| file.display().to_string()).collect();
    assert!(kept.iter().all(|file| file.starts_with("adapted/scores/set")), "{kept:?}");
    assert_eq!(kept.len(), 2 * (1 + 3 * 4), "whole and sliding: scores, and three pictures for each of four: {kept:?}");
    let file = json(&sandbox.text("adapted/scores/set.json"));
    assert_eq!((&file["format_version"], &file["scores"]), (&1.into(), &scores));
    let report = sandbox.text("adapted/report.html");
    let miou = format!("mIoU {:.1} % on set, all images.", 100.0 * scores["mIoU"].as_f64().unwrap());
    assert!(report.contains(&miou) && report.matches("class=\"scene\"").count() == 8, "{miou}");

    sandbox.ok("predict --checkpoint adapted set/images --format train-ids --output ids");
    let again = json(&sandbox.ok("evaluate --predictions ids --dataset set.toml --json").stdout);
    assert_eq!(again, scores, "predictions written and read again score the same");
    sandbox.ok("evaluate --checkpoint adapted --dataset set.toml --overlays overlays");
    assert_eq!(sandbox.contents("overlays").len(), 4);
}

fn prediction(sandbox: &Sandbox) {
    assert_eq!(writes_only(sandbox, "predict --checkpoint adapted photos/p0.png photos/p1.png", "out"), "out\n");
    let overlay = read_rgb(&sandbox.path("out/p0.png")).unwrap();
    assert_eq!((overlay.height, overlay.width), SIZE);
    assert_ne!(overlay.pixels, draw(0).0.pixels);
    sandbox.ok("predict --checkpoint adapted photos --opacity 0 --output clear");
    assert_eq!(read_rgb(&sandbox.path("clear/p0.png")).unwrap().pixels, draw(0).0.pixels);
    sandbox.fails("predict --checkpoint adapted photos --opacity 2 --output x", 2, &["from 0 to 1"]);

    let ids = read_label(&sandbox.path("ids/p3.png")).unwrap();
    assert_eq!((ids.height, ids.width), SIZE);
    assert!(ids.pixels.iter().all(|&id| id < 3));

    let photos = sandbox.contents("photos");
    sandbox.fails("predict --checkpoint adapted photos --output photos", 2, &["would be overwritten"]);
    assert_eq!(sandbox.contents("photos"), photos);
    sandbox.write("double/a.png", &sandbox.read("photos/p0.png"));
    sandbox.write("double/a.jpg", &sandbox.read("photos/p1.png"));
    sandbox.fails("predict --checkpoint adapted double --output x", 2, &["a.jpg and ", "have the same name"]);
}

#[test]
fn gradient_checkpointing_trains_alike() {
    let sandbox = Sandbox::new();
    for method in ["full", "lora --train-text-encoder false"] {
        let line = format!("{PERSONALIZE} --method {method} --steps 3 --learning-rate 1e-4");
        let numbers = |more: &str| {
            let run = format!("{}{}", &method[..4], more.len());
            sandbox.ok(&format!("{line} {more} --output {run}"));
            let steps = lines(&sandbox.path(&format!("{run}/metrics.jsonl"))).into_iter().map(|line| json(&line));
            steps.flat_map(|step| ["loss", "gradient_norm"].map(|key| step[key].as_f64().unwrap())).collect::<Vec<_>>()
        };
        let (plain, less) = (numbers(""), numbers("--set gradient_checkpointing=true"));
        assert_eq!(plain.len(), 6);
        assert!(plain.iter().zip(&less).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs()), "{method}: {plain:?} {less:?}");
    }
}

/// One step moves no weight by more than its learning rate, so the result shows where the student started.
#[test]
fn a_segmenter_is_adapted_further() {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{ADAPT} --strategy source-only --iterations 3 --set learning_rate=1e-3 --output source"));
    let line = format!("{ADAPT} --target photos --iterations 1 --seed 7 --set learning_rate=1e-6 --set head_multiplier=1");
    sandbox.ok(&format!("{line} --init source --output further"));
    sandbox.ok(&format!("{line} --output fresh"));
    let tensors = |run: &str| {
        let file = sandbox.path(&format!("{run}/segmenter.safetensors"));
        candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap()
    };
    let (source, further, fresh) = (tensors("source"), tensors("further"), tensors("fresh"));
    let distance = |other: &std::collections::HashMap<String, candle_core::Tensor>| {
        let largest = |(name, tensor): (&String, &candle_core::Tensor)| {
            (tensor - &other[name]).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
        };
        source
            .iter()
            .filter(|(name, _)| !name.contains("running_") && !name.contains("num_batches"))
            .map(largest)
            .fold(0.0, f32::max)
    };
    assert!(distance(&further) < 2e-6, "{}", distance(&further));
    assert!(distance(&fresh) > 1e-3, "{}", distance(&fresh));
    let hash = sandbox.text("further/environment.json");
    assert!(hash.contains("source/segmenter.safetensors"), "{hash}");

    let wider = line.replace("decoder_channels=8", "decoder_channels=16");
    sandbox.fails(&format!("{wider} --init source"), 3, &["source", "\"decoder_channels\":16", "decoder_channels"]);
    sandbox.fails(&format!("{line} --init nowhere"), 3, &["nowhere"]);
}

#[test]
fn lora_runs_are_used_with_their_base() {
    let sandbox = Sandbox::new();
    let lora = format!("{PERSONALIZE} --method lora --steps 4 --set learning_rate=0.05");
    sandbox.ok(&format!("{lora} --output both"));
    sandbox.ok(&format!("{lora} --train-text-encoder false --output unet"));
    for run in ["both", "unet"] {
        assert!(sandbox.has(&format!("{run}/pytorch_lora_weights.safetensors")) && !sandbox.has(&format!("{run}/model")));
    }
    let has_text = |run: &str| {
        let bytes = sandbox.read(&format!("{run}/pytorch_lora_weights.safetensors"));
        String::from_utf8_lossy(&bytes).contains("text_encoder.")
    };
    assert!(has_text("both") && !has_text("unet"));

    let image = |options: &str, output: &str| {
        sandbox.ok(&format!("generate --prompts things.txt --count 1 --steps 2 {options} --output {output}"));
        read_rgb(&sandbox.path(&format!("{output}/images/im_0_p0.png"))).unwrap().pixels
    };
    let (base, tuned) = (image("--model base", "a"), image("--model both", "b"));
    assert_ne!(base, tuned);
    let file = "--model base --lora both/pytorch_lora_weights.safetensors";
    assert_eq!(image(file, "c"), tuned, "the file alone does the same");
    assert_eq!(image(&format!("{file}:0"), "d"), base, "scale 0 is the base");

    sandbox.ok("lora convert both --to kohya --output kohya.safetensors");
    assert_eq!(writes_only(&sandbox, "lora convert kohya.safetensors --to peft", "peft"), "peft\n");
    assert_eq!(writes_only(&sandbox, "lora merge peft:1.0 --model base", "merged"), "merged\n");
    for (number, model) in ["base --lora kohya.safetensors", "base --lora peft", "merged"].iter().enumerate() {
        assert_eq!(image(&format!("--model {model}"), &format!("e{number}")), tuned, "{model}");
    }
    let found = json(&sandbox.ok("lora inspect kohya.safetensors --model base --json").stdout);
    assert_eq!((found["dialect"].as_str(), found["metadata"]["ss_max_train_steps"].as_str()), (Some("kohya"), Some("4")));
    let layers = found["layers"].as_array().unwrap();
    assert!(
        layers.len() > 4 && layers.iter().all(|layer| layer["rank"] == 4 && layer["share"].as_f64().unwrap() > 0.0),
        "{found}"
    );
    let text = sandbox.ok("lora inspect both --layers 2").stdout;
    assert!(text.contains("a photo of a sks") && text.contains("most changed layers"), "{text}");
    sandbox.fails("lora merge both --model base --output merged", 3, &["merged", "new or empty folder"]);
    sandbox.fails("lora convert both --to kohya --output photos", 3, &["photos", "a file to write"]);
    sandbox.fails("lora inspect photos", 3, &["photos", "pytorch_lora_weights.safetensors"]);
}

#[test]
fn a_plan_writes_nothing_and_fits_what_happens() {
    let sandbox = Sandbox::new();
    let before = sandbox.contents(".").len();
    let plan = json(&sandbox.ok(&format!("{PERSONALIZE} --plan --json")).stdout);
    assert_eq!(sandbox.contents(".").len(), before);
    let [full, lora] = [0, 2].map(|i| &plan["choices"][i]);
    assert_eq!((&full["method"], &lora["method"]), (&"full".into(), &"lora".into()));
    assert!(full["peak_bytes"].as_u64() > lora["peak_bytes"].as_u64(), "{plan}");
    assert!(full["peak_bytes"].as_u64() > full["checkpointed_peak_bytes"].as_u64(), "{plan}");
    let table = sandbox.ok(&format!("{PERSONALIZE} --plan")).stdout;
    assert!(table.contains("this run") && table.contains("expected time") && table.contains("nothing was written"), "{table}");
    let large = PERSONALIZE.replace("--crop-size 32", "--crop-size 4000");
    sandbox.fails(&format!("{large} --plan"), 2, &["--crop-size 4000"]);

    let disk = plan["forecast"]["disk_bytes"].as_u64().unwrap();

    // What the plan counts as trained is what the training writes.
    let written = |run: &str, file: &str| -> u64 {
        let file = sandbox.path(&format!("{run}/{file}"));
        let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
        let values = tensors.iter().filter(|(name, _)| !name.ends_with("alpha"));
        values.map(|(_, tensor)| tensor.elem_count() as u64).sum()
    };
    sandbox.ok(&format!("{PERSONALIZE} --steps 1 --output whole"));
    let whole = written("whole", "model/unet/diffusion_pytorch_model.safetensors")
        + written("whole", "model/text_encoder/model.safetensors");
    assert_eq!(full["trained"].as_u64(), Some(whole));
    sandbox.ok(&format!("{PERSONALIZE} --steps 1 --method lora --output low"));
    // The plan counts every interval of 200 steps and the states between; one step leaves at most that.
    let size = sandbox.contents("whole").values().map(|bytes| bytes.len() as u64).sum::<u64>();
    assert!(size < disk && disk < 20 * size, "{size} of {disk}");
    assert_eq!(lora["trained"].as_u64(), Some(written("low", "pytorch_lora_weights.safetensors")));
}

#[test]
fn plans_of_generate_and_adapt_write_nothing_and_fit_what_happens() {
    let sandbox = Sandbox::new();
    let before = sandbox.contents(".").len();
    let generate = "generate --prompts things.txt --model base --count 3 --steps 4 --output made";
    let plan = json(&sandbox.ok(&format!("{generate} --plan --json")).stdout);
    assert_eq!((plan["images"].as_u64(), plan["steps"].as_u64()), (Some(3), Some(4)));
    let (each, all) = (plan["forecast"]["seconds_each"].as_f64().unwrap(), plan["forecast"]["seconds"].as_f64().unwrap());
    assert!(each > 0.0 && (all - 3.0 * each).abs() < 1e-9, "{plan}");
    let adapt = format!("{ADAPT} --target photos --iterations 5");
    let plan = json(&sandbox.ok(&format!("{adapt} --plan --json")).stdout);
    assert_eq!((plan["source_images"].as_u64(), plan["target_images"].as_u64()), (Some(4), Some(4)));
    assert!(plan["forecast"]["seconds"].as_f64().unwrap() > 0.0, "{plan}");
    let text = sandbox.ok(&format!("{adapt} --plan")).stdout;
    assert!(text.contains("5 steps of 1 images, crops of 32x32") && text.contains("expected peak memory"), "{text}");
    assert_eq!(sandbox.contents(".").len(), before);
    // Images that are there are not planned again; the weights are those that are written.
    sandbox.ok(&generate.replace("--count 3", "--count 2"));
    assert_eq!(json(&sandbox.ok(&format!("{generate} --plan --json")).stdout)["images"].as_u64(), Some(1));
    // A shard has a manifest of its own: what was made without shards is not its.
    let shard = format!("{generate} --shard 0/3");
    assert_eq!(json(&sandbox.ok(&format!("{shard} --plan --json")).stdout)["images"].as_u64(), Some(1));
    sandbox.ok(&shard);
    assert_eq!(json(&sandbox.ok(&format!("{shard} --plan --json")).stdout)["images"].as_u64(), Some(0));
    sandbox.ok(&format!("{adapt} --iterations 1 --output run").replace("--iterations 5", ""));
    let written = candle_core::safetensors::load(
        sandbox.path("run/checkpoints/step-000001/weights.safetensors"),
        &candle_core::Device::Cpu,
    );
    let trained: u64 = written.unwrap().values().map(|tensor| tensor.elem_count() as u64).sum();
    assert!(plan["parameters"].as_u64().unwrap() <= trained);
}

#[test]
fn scores_on_the_way_are_logged_and_change_nothing() {
    let sandbox = Sandbox::new();
    let line = format!("{ADAPT} --target photos --iterations 4");
    sandbox.ok(&format!("{line} --output plain"));
    sandbox.ok(&format!("{line} --validation set.toml --validation-steps 2 --output scored"));
    assert!(sandbox.read("plain/segmenter.safetensors") == sandbox.read("scored/segmenter.safetensors"));
    let logged: Vec<(u64, f64)> = lines(&sandbox.path("scored/metrics.jsonl"))
        .iter()
        .map(|line| json(line))
        .filter_map(|metrics| Some((metrics["step"].as_u64()?, metrics["validation.mIoU"].as_f64()?)))
        .collect();
    assert_eq!(logged.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4]);
    let last = json(&sandbox.ok("evaluate --checkpoint scored --dataset set.toml --json -q").stdout);
    assert_eq!(last["mIoU"].as_f64(), Some(logged[1].1));
    assert!(sandbox.text("scored/report.html").contains("mIoU"));
    // The target as a data set: the page shows its images all the same.
    sandbox.ok(&format!("{ADAPT} --target set.toml --iterations 1 --output named"));
    let page = sandbox.text("named/report.html");
    assert!(page.contains("4 of the 4 images in set.toml") && page.contains("data:image/jpeg"));
    sandbox.fails(&format!("{line} --validation set.toml --validation-steps 0 --output x"), 2, &["validation_steps 0"]);
    sandbox.fails(
        &format!("{line} --validation photos --validation-steps 2 --output x"),
        3,
        &["a labelled data set of 3 classes"],
    );
}

#[test]
fn prior_preservation_makes_class_images_once() {
    let sandbox = Sandbox::new();
    let line =
        format!("{PERSONALIZE} --method lora --steps 1 --with-prior-preservation --class-prompt street --num-class-images 2");
    sandbox.fails(&line.replace("--class-prompt street", ""), 2, &["--class-prompt"]);
    sandbox.ok(&format!("{line} --output one"));
    let made = sandbox.contents("one/class-images");
    assert_eq!(made.len(), 2);
    sandbox.ok(&format!("{line} --class-images one/class-images --output two"));
    assert_eq!(sandbox.contents("one/class-images"), made);
    assert!(!sandbox.has("two/class-images"));
}

#[test]
fn runs_are_numbered_and_a_failed_one_is_not_taken() {
    let sandbox = Sandbox::new();
    sandbox.fails("generate --prompts things.txt", 3, &["a finished run of `datum personalize`", "datum personalize target.png"]);
    assert_eq!(std::fs::read_dir(sandbox.path("runs")).unwrap().count(), 0, "nothing was made");
    for _ in 0..2 {
        sandbox.ok(&format!("{PERSONALIZE} --method lora --steps 1"));
    }
    sandbox.fails("personalize missing.png --base base", 3, &["missing.png"]);
    let generated = sandbox.ok("generate --prompts things.txt --count 1 --steps 1");
    assert!(generated.stderr.contains("the newest personalised run, runs/"), "{}", generated.stderr);
    assert!(generated.stderr.contains("_personalize_p0_2\n"), "{}", generated.stderr);
    assert!(generated.stdout.starts_with("runs/") && generated.stdout.ends_with("/images\n"), "{}", generated.stdout);
}

#[test]
fn a_recipe_that_was_written_gives_the_same_run() {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{ADAPT} --strategy source-only --iterations 2 --seed 5 --output one"));
    sandbox.ok("adapt --recipe one/recipe.toml --output two");
    assert_eq!(sandbox.read("one/segmenter.safetensors"), sandbox.read("two/segmenter.safetensors"));
    assert_eq!(sandbox.read("one/metrics.jsonl"), sandbox.read("two/metrics.jsonl"));
}
