//! `datum dataset check`, `show` and `prepare`

use super::support::Sandbox;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn check_counts_and_explains() {
    let sandbox = Sandbox::new();
    let found = json(&sandbox.ok("dataset check set.toml --json").stdout);
    assert_eq!((found["images"].as_u64(), found["labels"].as_u64()), (Some(4), Some(4)));
    assert_eq!(found["sizes"], serde_json::json!([{ "height": 32, "width": 48, "images": 4 }]));
    let pixels: u64 = found["classes"].as_array().unwrap().iter().map(|class| class["pixels"].as_u64().unwrap()).sum();
    assert_eq!(pixels + found["ignored_pixels"].as_u64().unwrap(), 4 * 32 * 48);
    let plain = sandbox.ok("dataset check photos");
    assert!(plain.stdout.contains("an unlabelled set") && plain.stdout.contains("4 of 48x32"), "{}", plain.stdout);

    // Ids that are shifted by one: the lines that map them are proposed, and the gate fails.
    let shifted = "root = \"bad\"\nimages = \"*.png\"\nlabels = \"labels/{stem}.png\"\nclasses = [\"a\", \"b\"]\n";
    sandbox.write("bad.toml", shifted.as_bytes());
    datum::io::images::write_gray_png(&sandbox.path("bad/labels/p0.png"), (32, 48), &[[1, 2].repeat(768)].concat(), &[]).unwrap();
    sandbox.write("bad/p0.png", &sandbox.read("photos/p0.png"));
    sandbox.write("bad/p1.png", b"no picture");
    let outcome = sandbox.run("dataset check bad.toml");
    assert_eq!(outcome.status.code(), Some(3), "{}", outcome.stderr);
    for part in ["shifted by one", "1 = 0", "bad/p1.png"] {
        assert!(outcome.stdout.contains(part), "{part}: {}", outcome.stdout);
    }
    assert!(outcome.stderr.contains("without faults"), "{}", outcome.stderr);
    sandbox.fails("dataset check nowhere", 3, &["nowhere", "an unknown name"]);
}

#[test]
fn show_tells_what_a_set_is_and_draws_a_sheet() {
    let sandbox = Sandbox::new();
    let text = sandbox.ok("dataset show set.toml --output sheet.png --count 2").stdout;
    assert!(text.contains("data set") && text.contains("train id") && text.contains("sheet.png"), "{text}");
    let sheet = datum::io::images::read_rgb(&sandbox.path("sheet.png")).unwrap();
    // Two rows of a photo and its label, 6 white pixels around each.
    assert_eq!((sheet.height, sheet.width), (2 * 32 + 3 * 6, 2 * 48 + 3 * 6));
    let shown = json(&sandbox.ok("dataset show photos --json").stdout);
    assert_eq!((shown["labelled"].as_bool(), shown["images"].as_u64()), (Some(false), Some(4)));
}

#[test]
fn prepare_writes_folders_that_score_as_the_set_they_come_from() {
    let sandbox = Sandbox::new();
    let made = json(&sandbox.ok("dataset prepare set.toml --output plain --json").stdout);
    assert_eq!((made["images"].as_u64(), made["made"].as_u64()), (Some(4), Some(4)));
    let scores = json(&sandbox.ok("evaluate --predictions plain/labels --dataset set.toml --json").stdout);
    assert_eq!(scores["mIoU"].as_f64(), Some(1.0));
    let checked = json(&sandbox.ok("dataset check plain/set.toml --json").stdout);
    assert_eq!(checked["problems"], serde_json::json!([]));
    let again = json(&sandbox.ok("dataset prepare set.toml --output plain --json").stdout);
    assert_eq!(again["made"].as_u64(), Some(0));
    sandbox.fails("dataset prepare set.toml", 2, &["--output"]);
}

#[test]
fn prepare_keeps_what_the_user_wrote_and_writes_lists() {
    let sandbox = Sandbox::new();
    let own = format!("{}[splits]\ntrain = 'images/p[012].png'\nval = 'val.txt'\n", sandbox.text("set.toml"));
    sandbox.write("set.toml", own.as_bytes());
    sandbox.write("set/val.txt", b"p3\n");
    let before = sandbox.files();
    sandbox.fails("dataset prepare set.toml --output .", 2, &["set.toml would be overwritten", "--output"]);
    sandbox.fails("dataset prepare set.toml --output set", 2, &["the folder of data set `set` itself"]);
    assert_eq!((sandbox.files(), sandbox.text("set.toml")), (before, own));
    sandbox.ok("dataset prepare set.toml --output plain");
    assert_eq!(
        (sandbox.text("plain/splits/train.txt").as_str(), sandbox.text("plain/splits/val.txt").as_str()),
        ("p0\np1\np2\n", "p3\n")
    );
    assert_eq!(json(&sandbox.ok("dataset check plain/set.toml --split train --json").stdout)["images"].as_u64(), Some(3));
}
