//! Every answer of a language model, one file each, so that nothing is asked or paid for twice.

use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::io::{atomic, read_text};
use crate::prompting::{Answer, Request, Writer};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A folder of answers.
#[derive(Debug, Clone)]
pub struct Answers {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    writer: String,
    system: String,
    user: String,
    #[serde(flatten)]
    answer: Answer,
}

impl Answers {
    /// The answers in `folder`, which need not exist yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Tokens that all answers of the folder cost together.
    ///
    /// # Errors
    /// A folder that cannot be listed. Files that hold no answer cost nothing.
    pub fn tokens(&self) -> Result<u64> {
        if !self.folder.is_dir() {
            return Ok(0);
        }
        let entries = std::fs::read_dir(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        let answers = entries.filter_map(|entry| read(&entry.ok()?.path()));
        Ok(answers.fold(0, |sum, kept| sum.saturating_add(kept.answer.tokens)))
    }

    /// The file of an answer: named after everything it depends on, that is the writer, how it draws text, and the request.
    fn file(&self, writer: &dyn Writer, request: &Request) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        let numbers = format!("{} {}", request.seed, request.number);
        for part in [&writer.name(), &writer.sampling(), &request.system, &request.user, &numbers] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        self.folder.join(format!("{:04}-{}.json", request.number, &hasher.finalize().to_hex()[..16]))
    }

    /// Answers in the order of `requests`: kept ones, and what `writer` says to the others.
    ///
    /// # Errors
    /// As [`Writer::ask`]; answers that came before the error are kept. [`Error::Io`] when one cannot be written.
    pub fn ask(&self, writer: &mut dyn Writer, requests: &[Request], progress: &dyn Progress) -> Result<Vec<Answer>> {
        let name = writer.name();
        let files: Vec<PathBuf> = requests.iter().map(|request| self.file(writer, request)).collect();
        let mut answers: Vec<Option<Answer>> = files.iter().map(|file| Some(read(file)?.answer)).collect();
        let open: Vec<usize> = (0..requests.len()).filter(|at| answers[*at].is_none()).collect();
        if open.len() < requests.len() {
            progress.say(&format!("{} of {} answers are there already", requests.len() - open.len(), requests.len()));
        }
        let asked: Vec<Request> = open.iter().map(|at| requests[*at].clone()).collect();
        let mut heard = |place: usize, answer: Answer| {
            let (at, request) = (open[place], &asked[place]);
            let (system, user) = (request.system.clone(), request.user.clone());
            let kept = Kept { writer: name.clone(), system, user, answer };
            let text = serde_json::to_string_pretty(&kept).map_err(|e| Error::io(&files[at], e.into()))?;
            atomic::write(&files[at], format!("{text}\n").as_bytes())?;
            answers[at] = Some(kept.answer);
            Ok(())
        };
        writer.ask(&asked, &mut heard, progress)?;
        Ok(answers.into_iter().flatten().collect())
    }
}

/// What a file holds, if it is an answer.
fn read(file: &Path) -> Option<Kept> {
    serde_json::from_str(&read_text(file).ok()?).ok()
}
