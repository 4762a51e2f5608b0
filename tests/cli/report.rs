//! Pages about runs.

use super::support::{ADAPT, Sandbox, draw};
use datum::eval::{ConfusionMatrix, ExamplePicture, ScoreFile, Scores, Subject};
use datum::io::thumbnail;
use datum::labels::{LabelMap, overlay};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RECIPE: &str = "encoder = \"mit-b0\"  # `--encoder`\niterations = 4  # recipe <b>mine</b>.toml\nseed = SEED  # `--seed`\n\
                      strategy = \"daformer\"  # default\ntarget = \"photos\"  # `--target`\n\n[crop]\nheight = 32  # `--set`\n";
const PALETTE: [[u8; 3]; 3] = [[70, 130, 180], [128, 64, 128], [0, 0, 142]];

/// A finished adaptation of `done` of 4 steps.
fn adapted(sandbox: &Sandbox, name: &str, seed: u64, done: u64) {
    sandbox.write(&format!("{name}/recipe.toml"), RECIPE.replace("SEED", &seed.to_string()).as_bytes());
    let environment = json!({ "version": "0.1.0", "threads": 1, "inputs": { "start.safetensors": "ab12" } });
    sandbox.write(&format!("{name}/environment.json"), environment.to_string().as_bytes());
    let stage =
        json!({ "time": 1_795_293_057, "event": "stage", "peak_memory_mib": 828, "stage": "adapt", "seconds": 83.5, "ok": true });
    sandbox.write(&format!("{name}/log.jsonl"), format!("{stage}\n").as_bytes());
    let steps = (1..=done).map(|step| format!("{}\n", json!({ "step": step, "loss": 1.0 / step as f64, "learning_rate": 1e-4 })));
    sandbox.write(&format!("{name}/metrics.jsonl"), steps.collect::<String>().as_bytes());
    if done == 4 {
        sandbox.write(&format!("{name}/segmenter.safetensors"), b"weights");
    }
}

/// Scores in which `wrong` of the pixels of the sky are taken for road, with two pictures.
fn scored(sandbox: &Sandbox, run: &str, wrong: usize) {
    let map = |ids: Vec<u8>| LabelMap { height: 1, width: 30, ids };
    let label: Vec<u8> = (0..30).map(|pixel| pixel / 10).collect();
    let prediction = label.iter().enumerate().map(|(pixel, &id)| if pixel < wrong { 1 } else { id }).collect();
    let mut matrix = ConfusionMatrix::new(3);
    matrix.add(&map(prediction), &map(label)).unwrap();
    let names = ["sky", "road", "<car>"].map(String::from);
    let subject =
        Subject { dataset: "town".into(), root: "data/town".into(), split: Some("val".into()), inference: "whole".into() };
    let file = ScoreFile::new(subject, "ab".into(), Scores::new(&matrix, &names, 2), PALETTE.to_vec(), &matrix);
    let picture = |index: usize| {
        let (photo, ids) = draw(index);
        let label = overlay(&photo, &LabelMap { height: photo.height, width: photo.width, ids }, &PALETTE, 0.5);
        let [photo, label] = [&photo, &label].map(|picture| thumbnail::jpeg(picture, 90).unwrap());
        ExamplePicture { stem: format!("p{index}"), files: [photo, label.clone(), label] }
    };
    file.write(&sandbox.path(run), &[picture(0), picture(1)]).unwrap();
}

/// Nothing is loaded from anywhere, nothing from outside became markup.
fn is_self_contained(page: &str) {
    assert_eq!(page.matches("<script").count(), 1, "only the page's own script");
    for attribute in ["src=\"", "href=\""] {
        for (at, _) in page.match_indices(attribute) {
            let value = &page[at + attribute.len()..];
            assert!(value.starts_with("data:image/jpeg;base64,") || value.starts_with('#'), "{}", &value[..60]);
        }
    }
    for word in ["http://", "https://", "<link", "<iframe", "@import", "url("] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.len() < 6 << 20, "{} bytes", page.len());
}

#[test]
fn folders_that_are_no_runs_are_explained() {
    let sandbox = Sandbox::new();
    for (run, found) in [("nowhere", "nothing there"), ("photos", "a folder without it"), ("set.toml", "a file")] {
        let parts = ["expected a run folder (with recipe.toml)", found, run, "next: name the folder of a run"];
        sandbox.fails(&format!("report {run}"), 3, &parts);
    }
    sandbox.write("broken/recipe.toml", b"seed = ");
    sandbox.fails("report broken", 3, &["a recipe that datum wrote", "broken/recipe.toml"]);
    sandbox.fails("report", 2, &["<RUN>"]);
    adapted(&sandbox, "run", 0, 4);
    sandbox.fails("report run nowhere", 3, &["nowhere"]);
    sandbox.fails("report run --baseline nowhere --output page.html", 3, &["nowhere"]);
    for file in ["photos/report.html", "run/report.html", "run/comparison.html", "page.html"] {
        assert!(!sandbox.has(file), "{file}");
    }
}

#[test]
fn a_page_shows_a_run_and_loads_nothing() {
    let sandbox = Sandbox::new();
    adapted(&sandbox, "run", 7, 4);
    scored(&sandbox, "run", 2);
    let before = sandbox.files();
    let result: Value = serde_json::from_str(&sandbox.ok("report run --json").stdout).unwrap();
    let page = sandbox.text("run/report.html");
    assert_eq!((&result["report"], &result["bytes"]), (&"run/report.html".into(), &page.len().into()));
    assert_eq!(sandbox.files().difference(&before).count(), 1);
    is_self_contained(&page);
    let parts = [
        "Finished on 2026-11-21 20:30 UTC after 1 min 23 s. mIoU 87.8 % on town, val.",
        "recipe &lt;b&gt;mine&lt;/b&gt;.toml",
        "<code>crop.height</code>",
        "828 MiB",
        "start.safetensors",
        "&lt;car&gt;",
        "sky seen as road: 20.0 %",
        "The same again: <code>datum adapt --recipe run/recipe.toml --output NEW",
        "data-name=\"loss\"",
        "4 of the 4 images in photos",
    ];
    for part in parts {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("id=\"missing\"") && !page.contains("<b>mine"));
}

#[test]
fn what_is_missing_or_torn_is_said() {
    let sandbox = Sandbox::new();
    adapted(&sandbox, "run", 0, 2);
    let metrics = sandbox.text("run/metrics.jsonl");
    sandbox.write("run/metrics.jsonl", format!("{metrics}{{\"step\":3,\"loss\":null}}\n{{\"step\":4,\"lo").as_bytes());
    sandbox.write("run/environment.json", b"{");
    std::fs::remove_file(sandbox.path("run/log.jsonl")).unwrap();
    sandbox.write("run/scores/old.json", b"{\"format_version\": 9}");
    assert_eq!(sandbox.ok("report run").stdout, "run/report.html\n");
    let page = sandbox.text("run/report.html");
    is_self_contained(&page);
    let parts = [
        "This run is not finished (step 3 of 4).",
        "metrics.jsonl: 1 line that is no whole record, left out.",
        "left out: 1 not a number",
        "environment.json cannot be read",
        "there is no readable log.jsonl",
        "found version 9",
        "datum evaluate --checkpoint run --dataset DATASET",
    ];
    for part in parts {
        assert!(page.contains(part), "{part}");
    }
    // A folder with settings alone is a run that has not begun.
    sandbox.write("empty/recipe.toml", RECIPE.replace("SEED", "1").as_bytes());
    sandbox.ok("report empty");
    assert!(sandbox.text("empty/report.html").contains("not finished (before the first step)"));
    sandbox.write("other/recipe.toml", b"word = 1\n");
    sandbox.ok("report other");
}

#[test]
fn generated_images_come_with_prompts_and_seeds() {
    let sandbox = Sandbox::new();
    sandbox
        .write("set2/recipe.toml", b"count = 60  # `--count`\nguidance_scale = 7.5  # default\nmodel = \"mine\"  # `--model`\n");
    sandbox.write(
        "mine/recipe.toml",
        b"images = [\"photos/p0.png\"]  # flag\ninstance_prompt = \"a <i>sks</i> street\"  # default\n",
    );
    let mut manifest = String::new();
    for index in 0..60 {
        let file = format!("../photos/p{}.png", index % 4);
        let prompt = "a photo of <script>alert(1)</script> & cars";
        manifest += &format!("{}\n", json!({ "file": file, "index": index, "prompt": prompt, "seed": 100 + index }));
    }
    manifest += &format!("{}\n", json!({ "file": "gone.png", "index": 60, "prompt": "x", "seed": 1 }));
    sandbox.write("set2/manifest.jsonl", manifest.as_bytes());
    sandbox.ok("report set2");
    let page = sandbox.text("set2/report.html");
    is_self_contained(&page);
    assert!(page.contains("48 of 61 images, evenly taken"));
    assert!(page.contains("a photo of &lt;script&gt;alert(1)&lt;/script&gt; &amp; cars<small>image 0, seed 100</small>"));
    assert!(page.contains("Instance prompt: “a &lt;i&gt;sks&lt;/i&gt; street”"), "the target photo is found through the model");
    assert_eq!(page.matches("<img").count(), 48 + 1);

    // An adaptation to these images shows them, and the photo they go back to.
    adapted(&sandbox, "run", 0, 4);
    sandbox.write("set2/images/im_0_p0.png", &sandbox.read("photos/p0.png"));
    let recipe = sandbox.text("run/recipe.toml").replace("\"photos\"", "\"set2/images\"");
    sandbox.write("run/recipe.toml", recipe.as_bytes());
    sandbox.ok("report run");
    let page = sandbox.text("run/report.html");
    assert!(page.contains("1 of the 1 images in set2/images") && page.contains("a &lt;i&gt;sks&lt;/i&gt; street"));
    assert_eq!(page.matches("<img").count(), 1 + 1);
}

#[test]
fn runs_are_compared_with_a_baseline() {
    let sandbox = Sandbox::new();
    for (run, seed, wrong) in [("first", 1, 4), ("second", 2, 1), ("third", 3, 5)] {
        adapted(&sandbox, run, seed, 4);
        scored(&sandbox, run, wrong);
    }
    assert_eq!(sandbox.ok("report first second").stdout, "first/comparison.html\n");
    let page = sandbox.text("first/comparison.html");
    is_self_contained(&page);
    assert!(page.contains("second compared with the baseline first."), "{}", &page[..600]);
    // Sky: 6 of 10 pixels, then 9 of 10.
    assert!(page.contains(">60.0<") && page.contains(">90.0<") && page.contains(">+30.0<"));
    assert!(page.contains("data-left=\"2\" data-right=\"3\""), "the baseline's overlay is on the left");
    assert!(page.contains("<h3>Different</h3>") && page.contains("<h3>The same in all</h3>"));

    let json = sandbox.ok("report third --baseline first --output page.html --json").stdout;
    let result: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&result["report"], &result["runs"]), (&"page.html".into(), &json!(["first", "third"])));
    assert!(sandbox.text("page.html").contains(">−10.0<"), "losses have a sign too");
    assert!(!sandbox.has("third/report.html") && !sandbox.has("third/comparison.html"));
    sandbox.ok("report first second third --baseline second --output three.html");
    assert!(sandbox.text("three.html").contains("first, third compared with the baseline second."));
    sandbox.ok("report first ./first first");
    assert!(sandbox.has("first/report.html"), "a run named twice is one run");
}

#[test]
fn seeds_are_shown_with_mean_and_spread() {
    let sandbox = Sandbox::new();
    sandbox.write("both/recipe.toml", RECIPE.replace("SEED", "0").as_bytes());
    #[cfg(unix)]
    std::os::unix::fs::symlink(".", {
        std::fs::create_dir(sandbox.path("both/seed-0")).unwrap();
        sandbox.path("both/seed-0/seed-1")
    })
    .unwrap();
    for (seed, wrong) in [(0, 2), (3, 4)] {
        adapted(&sandbox, &format!("both/seed-{seed}"), seed, 4);
        scored(&sandbox, &format!("both/seed-{seed}"), wrong);
    }
    sandbox.ok("report both");
    let page = sandbox.text("both/report.html");
    // Sky: 80 and 60 percent.
    for part in [
        "both, 2 seeds",
        ">70.0 ± 14.1<",
        "mIoU 82.5 ± 7.5 % on town, val.",
        "data-name=\"seed 0\"",
        "data-name=\"seed 3\"",
        "adapt, seed 3",
        "--seeds 0,3",
    ] {
        assert!(page.contains(part), "{part}");
    }
    adapted(&sandbox, "one", 1, 4);
    scored(&sandbox, "one", 0);
    sandbox.ok("report one both");
    assert!(sandbox.text("one/comparison.html").contains("shown as the mean over seeds"));
}

#[test]
fn a_report_that_cannot_be_written_fails_no_run() {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{ADAPT} --strategy source-only --iterations 1 --output run"));
    std::fs::remove_file(sandbox.path("run/report.html")).unwrap();
    std::fs::create_dir(sandbox.path("run/report.html")).unwrap();
    sandbox.write("run/scores", b"a file in the way");
    let outcome = sandbox.ok("evaluate --checkpoint run --dataset set.toml");
    for part in ["the scores were not written into the run", "no report was written"] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    sandbox.fails("report run", 3, &["run/report.html", "next: name a file, not a folder"]);
}

#[test]
fn a_demo_keeps_its_own_page() {
    let sandbox = Sandbox::new();
    sandbox.write("demo/recipe.toml", b"recipe = \"demo\"  # default\nseed = 0  # default\nstart_iterations = 450  # default\n");
    let unfinished = ["demo is a demo that is not finished", "`--output demo`", "demo/source-only"];
    sandbox.fails("report demo", 2, &unfinished);
    assert!(!sandbox.has("demo/report.html"));
    sandbox.write("demo/report.html", b"both segmenters");
    sandbox.fails("report demo", 2, &unfinished);
    sandbox.write("demo/result.json", b"{}");
    let result: Value = serde_json::from_str(&sandbox.ok("report demo --json").stdout).unwrap();
    assert_eq!(result, json!({ "report": "demo/report.html", "runs": ["demo"], "bytes": 15 }));
    adapted(&sandbox, "run", 0, 4);
    for line in ["report demo --output page.html", "report demo run", "report run --baseline demo"] {
        sandbox.fails(line, 2, &["next: open demo/report.html", "demo/source-only"]);
    }
    assert_eq!(sandbox.text("demo/report.html"), "both segmenters");
    assert!(!sandbox.has("page.html") && !sandbox.has("demo/comparison.html") && !sandbox.has("run/comparison.html"));
}

#[test]
fn every_command_is_known_by_its_recipe() {
    let sandbox = Sandbox::new();
    let stage = |ok: bool| format!("{}\n", json!({ "event": "stage", "stage": "x", "seconds": 1.0, "ok": ok }));
    for (recipe, command) in [
        ("near_duplicate = 0.6\n", "clouds prompts"),
        ("keep_unassigned = false\nimages = \"photos\"\n", "clouds refine"),
        ("refiner = \"regions\"\n[automatic]\npoints_per_side = 32\n", "clouds masks"),
    ] {
        sandbox.write("run/recipe.toml", recipe.as_bytes());
        for (ok, state) in [(false, "This run is not finished."), (true, "Finished after 1")] {
            sandbox.write("run/log.jsonl", stage(ok).as_bytes());
            sandbox.ok("report run");
            let page = sandbox.text("run/report.html");
            assert!(page.contains(&format!("<dd>{command}</dd>")) && page.contains(state), "{command}, {ok}");
            assert!(!page.contains("the training has not begun"), "{command}");
        }
    }
    let steps = "{\"step\":57,\"loss\":1.5}\n{\"step\":58,\"loss\":1.25}\n";
    sandbox.write("clip/recipe.toml", b"steps = 5000\nimages = \"photos\"\n[model]\ntext_width = 128\n");
    sandbox.write("clip/metrics.jsonl", steps.as_bytes());
    sandbox.ok("report clip");
    let page = sandbox.text("clip/report.html");
    assert!(page.contains("<dd>clouds pretrain</dd>") && page.contains("This run is not finished (step 58 of 5000)."));
    sandbox.write("clip/clip/open_clip_model.safetensors", b"weights");
    sandbox.ok("report clip");
    assert!(sandbox.text("clip/report.html").contains("<dd>finished</dd>"));
    // Of what nobody knows it is not said that it is finished.
    sandbox.write("other/recipe.toml", b"word = 1\n");
    sandbox.write("other/metrics.jsonl", steps.as_bytes());
    sandbox.ok("report other");
    assert!(sandbox.text("other/report.html").contains("<dd>unknown (step 58)</dd>"));
}

/// The first Chromium there is: `CHROMIUM`, or one in the path.
fn chromium() -> Option<String> {
    let named = std::env::var("CHROMIUM").ok();
    let names = ["chromium", "chromium-browser", "google-chrome"].map(String::from);
    let starts = |name: &String| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    named.into_iter().chain(names).find(starts)
}

/// Opens a page and gives what Chromium wrote: (standard output, standard error).
fn browse(sandbox: &Sandbox, chromium: &str, page: &Path, flags: &[&str]) -> (String, String) {
    let [out, log] = ["browser.out", "browser.log"].map(|name| sandbox.path(name));
    let mut command = sandbox.command(chromium);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--enable-logging=stderr",
    ]);
    command.args(["--virtual-time-budget=2000", "--window-size=1200,2400"]).args(flags);
    command.arg(format!("--user-data-dir={}", sandbox.path("profile").display())).arg(format!("file://{}", page.display()));
    let files = [&out, &log].map(|path| std::fs::File::create(path).unwrap());
    let [stdout, stderr] = files;
    let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > Duration::from_secs(120) => {
                child.kill().unwrap();
                panic!("the browser does not end: {}", std::fs::read_to_string(&log).unwrap());
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let [stdout, stderr] = [out, log].map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned());
    assert!(status.success(), "{stderr}");
    (stdout, stderr)
}

/// What a reader does: moves a slider, chooses another picture, points at a chart. The outcome becomes the title.
const DRIVE: &str = r#"<script>
  const scene = document.querySelector(".scene"), pair = scene.querySelector(".pair");
  const range = pair.querySelector("input"), [left, right] = scene.querySelectorAll("select");
  range.value = 20;
  range.dispatchEvent(new Event("input"));
  left.value = 1;
  left.dispatchEvent(new Event("change"));
  const svg = document.querySelector(".chart svg[data-x]"), box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right, clientY: box.top + 5 }));
  const shown = (image) => getComputedStyle(image).display !== "none" && image.complete && image.naturalWidth > 0;
  document.title = [
    pair.style.getPropertyValue("--at"), pair.querySelector(".left").alt, right.selectedOptions[0].text,
    document.querySelector(".read").textContent, [...pair.querySelectorAll("img")].every(shown),
    getComputedStyle(scene.querySelector(".layers")).display, document.documentElement.scrollWidth <= innerWidth,
  ].join("|");
</script>"#;

#[test]
fn a_browser_shows_the_page_and_its_script_works() {
    let Some(chromium) = chromium() else {
        println!("skipped: no Chromium (set CHROMIUM to its path)");
        return;
    };
    let sandbox = Sandbox::new();
    for (run, seed, wrong) in [("first", 1, 4), ("second", 2, 1)] {
        adapted(&sandbox, run, seed, 4);
        scored(&sandbox, run, wrong);
    }
    sandbox.ok("report first second --output page.html");
    let page = sandbox.text("page.html");
    sandbox.write("driven.html", page.replace("</body>", &format!("{DRIVE}</body>")).as_bytes());
    let (dom, log) = browse(&sandbox, &chromium, &sandbox.path("driven.html"), &["--dump-dom"]);
    assert!(!log.contains("CONSOLE"), "{log}");
    assert!(dom.contains("data-script=\"ready\""), "the script ran to its end");
    assert_eq!(dom.matches("type=\"range\"").count(), 2, "a slider for each picture");
    let title = dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
    assert_eq!(title, "20%|p0: labels|second|at 4: first 0.25, second 0.25|true|none|true");

    let shot = |name: &str, flags: &[&str]| {
        let file = sandbox.path(name);
        let (_, log) = browse(
            &sandbox,
            &chromium,
            &sandbox.path("page.html"),
            &[&[&*format!("--screenshot={}", file.display())], flags].concat(),
        );
        let picture = datum::io::images::read_rgb(&file).unwrap_or_else(|e| panic!("{e}: {log}"));
        picture.pixels[..3].to_vec()
    };
    let (light, dark) = (shot("light.png", &[]), shot("dark.png", &["--blink-settings=preferredColorScheme=0"]));
    assert!(light.iter().all(|&value| value > 240) && dark.iter().all(|&value| value < 40), "{light:?} {dark:?}");
}
