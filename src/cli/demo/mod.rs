//! `datum demo`: the whole idea on drawn streets, with the commands a user would type.

pub(super) mod runner;

use crate::base::{Error, Result};
use runner::{Demo, DemoArgs, SOURCE, Script, Step, compared};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The photo of the target, inside the demo's folder.
const PHOTO: &str = "photo/images/000000.png";
/// Describes the unseen streets.
const UNSEEN: &str = "unseen.toml";
/// Pseudo-target pictures with the photo among them.
const TARGET: &str = "pseudo-target";
/// Every so many pictures of the target set are the photo.
const PHOTO_EVERY: usize = 5;

const SCRIPT: Script = Script {
    program: "datum",
    recipes: ["demo", "demo-fast"],
    steps: &[
        SOURCE,
        Step {
            title: "the target: ONE street at dusk, without labels",
            folder: "photo",
            seconds: [1.0, 1.0],
            command: "dataset render-street --look dusk --seed {seed}1 --count 1",
        },
        Step {
            title: "streets at dusk nobody has seen, for the test at the end",
            folder: "unseen",
            seconds: [3.0, 2.0],
            command: "dataset render-street --look dusk --seed {seed}2 --count {test}",
        },
        Step {
            title: "nano learns the look of the photo",
            folder: "personalize",
            seconds: [30.0, 13.0],
            command: "personalize @/photo/images/000000.png --base nano --class-images @/source/images",
        },
        Step {
            title: "it redraws the streets in that look",
            folder: "generate",
            seconds: [45.0, 10.0],
            command: "generate --prompts things.txt --model @/personalize --init-images @/source/images \
                  --init-style @/photo/images/000000.png",
        },
        Step {
            title: "a segmenter learns from the source",
            folder: "start",
            seconds: [102.0, 37.0],
            command: "adapt --source street=@/source --strategy source-only --iterations {start} --set learning_rate=2e-3 \
                  --set warmup=50",
        },
        Step {
            title: "it goes on with the source alone",
            folder: "source-only",
            seconds: [35.0, 12.0],
            command: "adapt --source street=@/source --strategy source-only --init @/start --validation @/unseen.toml",
        },
        Step {
            title: "or with source and pseudo-target",
            folder: "adapted",
            seconds: [80.0, 26.0],
            command: "adapt --source street=@/source --target @/pseudo-target --init @/start --set fourier=0.01 \
                  --validation @/unseen.toml",
        },
    ],
};

/// Runs the verb.
pub fn run(args: &DemoArgs) -> Result<()> {
    let demo = Demo::open(&SCRIPT, args)?;
    demo.run(|folder| match folder {
        "unseen" => demo.describe(UNSEEN, "unseen"),
        "generate" => pseudo_target(&demo),
        _ => Ok(()),
    })?;
    let scores = |name: &str| demo.scores(name, UNSEEN, Some(&format!("{name}/overlays")));
    let result = json!({ "source_only": scores("source-only")?, "adapted": scores("adapted")? });
    demo.finish(&["source-only", "adapted"], result, table)
}

/// The generated pictures, with the photo as every fifth one.
fn pseudo_target(demo: &Demo) -> Result<()> {
    let (from, to) = (demo.path("generate/images"), demo.path(TARGET));
    fs::create_dir_all(&to).map_err(|e| Error::io(&to, e))?;
    let place = |from: &Path, name: String| {
        let target = to.join(name);
        if target.exists() {
            return Ok(());
        }
        fs::hard_link(from, &target).or_else(|_| fs::copy(from, &target).map(drop)).map_err(|e| Error::io(&target, e))
    };
    let pictures = crate::io::images::list(&from)?;
    for picture in &pictures {
        place(picture, picture.file_name().unwrap_or_default().to_string_lossy().into_owned())?;
    }
    (0..pictures.len() / (PHOTO_EVERY - 1)).try_for_each(|i| place(&demo.path(PHOTO), format!("photo_{i}.png")))
}

/// IoU per class of both segmenters and what adaptation changed, in percent.
fn table(result: &Value) -> String {
    let (before, after) = (&result["source_only"], &result["adapted"]);
    let classes = before["classes"].as_array().into_iter().flatten().zip(after["classes"].as_array().into_iter().flatten());
    let classes = classes.map(|(a, b)| (a["name"].as_str().unwrap_or_default(), &a["iou"], &b["iou"]));
    let all = std::iter::once(("mIoU", &before["mIoU"], &after["mIoU"]));
    compared(["IoU, %", "source-only", "adapted"], classes.chain(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_changed_and_what_is_missing() {
        let scores = |miou: f64, iou: Value| json!({ "mIoU": miou, "classes": [{ "name": "road", "iou": iou }] });
        let text = table(&json!({ "source_only": scores(0.25, json!(0.5)), "adapted": scores(0.375, Value::Null) }));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["road", "50.0", "–", "–"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["mIoU", "25.0", "37.5", "+12.5"]);
    }
}
