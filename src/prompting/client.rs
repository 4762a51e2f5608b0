//! Language models behind a server that speaks OpenAI's chat protocol. One of the two places that open sockets.
//!
//! Requests run side by side, a few at a time. What may be better the next time (no connection, no answer in time, 408, 429,
//! 5xx, an answer that is not one) is tried again after a pause that doubles; anything else ends the work. Answers are handed
//! over one by one, so that what was paid for is kept whatever happens next.

use super::writer::{Answer, Request, Writer};
use crate::base::progress::Progress;
use crate::base::{Error, Result, Rng, interrupt};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinSet;

/// Longest answer that is read.
const MAX_BYTES: usize = 4 << 20;
/// Longest pause, also where the server asks for more.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How often Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(50);

/// A server and how it is used.
#[derive(Clone)]
pub struct ClientSettings {
    /// Address up to and including the version, e.g. `http://localhost:8080/v1`, or of the endpoint itself.
    pub url: String,
    /// Model by the server's name for it; empty leaves the choice to the server.
    pub model: String,
    /// Key that is sent with each request; never shown, never written.
    pub key: Option<String>,
    /// Requests at a time.
    pub concurrency: usize,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Attempts for one request.
    pub attempts: usize,
    /// Pause after the first failed attempt; it doubles with each further one.
    pub pause: Duration,
    /// Sampling temperature.
    pub temperature: f64,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Name of the field that holds `max_tokens`; some servers want `max_completion_tokens`.
    pub max_tokens_field: String,
    /// Whether the field `seed` is sent; some servers refuse it.
    pub send_seed: bool,
    /// Tokens that may be spent, requests and answers together; 0: any number.
    pub budget: u64,
}

/// See the module.
pub struct Client {
    settings: ClientSettings,
    endpoint: reqwest::Url,
    /// Tokens spent so far: by this process, failed attempts included, and for the answers of earlier ones.
    spent: u64,
}

/// How an attempt ended without an answer.
struct Failure {
    why: String,
    /// Whether another attempt may help.
    again: bool,
    /// The pause that the server asks for.
    pause: Option<Duration>,
    /// Whether the server may have worked for it.
    charged: bool,
}

impl Client {
    /// A client that has spent `spent` tokens before. Opens no socket.
    ///
    /// # Errors
    /// [`Error::Usage`] for an address that is none or holds a password, or settings of 0.
    pub fn new(settings: ClientSettings, spent: u64) -> Result<Self> {
        let endpoint = endpoint(&settings.url)?;
        if settings.concurrency == 0 || settings.attempts == 0 || settings.max_tokens == 0 || settings.timeout.is_zero() {
            return Err(Error::Usage("concurrency, attempts, max_tokens and timeout must be greater than 0".into()));
        }
        Ok(Self { settings, endpoint, spent })
    }

    /// Address that requests go to.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_str()
    }

    /// The address without what follows a question mark, which may hold a key.
    fn shown(&self) -> String {
        let mut shown = self.endpoint.clone();
        shown.set_query(None);
        shown.into()
    }

    /// True when a key would go over the network unencrypted to another machine.
    pub fn exposes_key(&self) -> bool {
        let local = matches!(self.endpoint.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        self.settings.key.is_some() && self.endpoint.scheme() == "http" && !local
    }

    /// What is sent for a request.
    pub fn body(&self, request: &Request) -> Value {
        let mut body = json!({
            "messages": [
                { "role": "system", "content": request.system },
                { "role": "user", "content": request.user },
            ],
            "temperature": self.settings.temperature,
        });
        body[self.settings.max_tokens_field.as_str()] = self.settings.max_tokens.into();
        if !self.settings.model.is_empty() {
            body["model"] = self.settings.model.as_str().into();
        }
        if self.settings.send_seed {
            // Servers read signed 32 bits at least; the sum tells requests of one run apart.
            body["seed"] = (request.seed.wrapping_add(request.number) & 0x7fff_ffff).into();
        }
        body
    }

    /// The most tokens a request can cost: its text at three bytes a token, and the longest answer.
    pub fn most_tokens(&self, request: &Request) -> u64 {
        ((request.system.len() + request.user.len()) / 3 + self.settings.max_tokens) as u64
    }

    /// [`Writer::ask`] within a runtime.
    async fn run(
        &mut self,
        requests: &[Request],
        heard: &mut dyn FnMut(usize, Answer) -> Result<()>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let http = reqwest::Client::builder().timeout(self.settings.timeout).build();
        let http = http.map_err(|e| Error::environment(format!("cannot start the HTTP client: {e}"), "check the TLS set-up"))?;
        let mut tasks = JoinSet::new();
        // Position, number of failed attempts, and the pause before the next one; the last goes first.
        let mut waiting: Vec<(usize, usize, Duration)> = (0..requests.len()).rev().map(|at| (at, 0, Duration::ZERO)).collect();
        let mut reserved = 0;
        loop {
            while tasks.len() < self.settings.concurrency
                && let Some(&(at, attempt, pause)) = waiting.last()
            {
                let most = self.most_tokens(&requests[at]);
                if self.settings.budget > 0 && self.spent.saturating_add(reserved + most) > self.settings.budget {
                    match tasks.is_empty() {
                        true => return Err(self.out_of_budget(most)),
                        false => break, // those under way may cost less than is reserved for them
                    }
                }
                waiting.pop();
                reserved += most;
                let (http, endpoint, key) = (http.clone(), self.endpoint.clone(), self.settings.key.clone());
                let body = self.body(&requests[at]).to_string();
                tasks.spawn(async move {
                    tokio::time::sleep(pause).await;
                    (at, attempt, post(http, endpoint, key, body).await)
                });
            }
            let Some((at, attempt, outcome)) = next(&mut tasks).await? else { return Ok(()) };
            let most = self.most_tokens(&requests[at]);
            reserved -= most;
            match outcome {
                Ok(answer) => {
                    self.spent = self.spent.saturating_add(answer.tokens);
                    heard(at, Answer { text: self.without_key(&answer.text), ..answer })?;
                }
                Err(failure) => {
                    self.spent = self.spent.saturating_add(if failure.charged { most } else { 0 });
                    let why = self.without_key(&failure.why);
                    if !failure.again || attempt + 1 >= self.settings.attempts {
                        return Err(self.gives_up(&why, attempt + 1));
                    }
                    progress.warn(&format!("{}: {why}; trying again", self.shown()));
                    waiting.push((at, attempt + 1, self.pause(&requests[at], attempt, failure.pause)));
                }
            }
        }
    }

    /// How long to wait before another attempt: what the server asks for, else a pause that doubles, up to half of it at random.
    fn pause(&self, request: &Request, attempt: usize, asked: Option<Duration>) -> Duration {
        let jitter = Rng::stream(request.seed, "retry", &[request.number, attempt as u64]).uniform_in(0.5, 1.0);
        let own = self.settings.pause.saturating_mul(1 << attempt.min(16)).mul_f32(jitter);
        asked.unwrap_or(own).min(MAX_PAUSE)
    }

    /// What a server says may hold what it was sent.
    fn without_key(&self, text: &str) -> String {
        match &self.settings.key {
            Some(key) => text.replace(key.as_str(), "[key]"),
            None => text.into(),
        }
    }

    fn gives_up(&self, why: &str, attempts: usize) -> Error {
        let times = if attempts == 1 { String::new() } else { format!(" ({attempts} attempts)") };
        let what = format!("{}: {why}{times}", self.shown());
        Error::environment(what, "check the server, the model's name and the key; run the same command again: answers are kept")
    }

    fn out_of_budget(&self, most: u64) -> Error {
        Error::environment(
            format!(
                "{} of {} tokens of the budget are spent, and the next request may need {most}",
                self.spent, self.settings.budget
            ),
            "raise `--budget` and run the same command again: answers are kept; or ask for fewer prompts with `--count`",
        )
    }
}

impl Writer for Client {
    fn name(&self) -> String {
        match self.settings.model.as_str() {
            "" => format!("openai:{}", self.shown()),
            model => format!("openai:{} {model}", self.shown()),
        }
    }

    fn sampling(&self) -> String {
        format!("temperature {}, at most {} tokens", self.settings.temperature, self.settings.max_tokens)
    }

    /// Blocks; not to be called from asynchronous code.
    fn ask(
        &mut self,
        requests: &[Request],
        heard: &mut dyn FnMut(usize, Answer) -> Result<()>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime =
            runtime.map_err(|e| Error::environment(format!("cannot start network threads: {e}"), "free some memory"))?;
        let result = runtime.block_on(self.run(requests, heard, progress));
        // A name that is still being looked up must not hold up the end.
        runtime.shutdown_background();
        result
    }
}

/// Where requests go for an address as users give it: of the interface up to its version, or of the endpoint itself.
///
/// # Errors
/// [`Error::Usage`] for what is no address of a server, and for one with a name or password in it: addresses are written down.
pub fn endpoint(url: &str) -> Result<reqwest::Url> {
    let usage = |what: String| Error::Usage(format!("{what}\n  next: give it as `--llm openai:http://localhost:8080/v1`"));
    let mut endpoint: reqwest::Url = url.parse().map_err(|e| usage(format!("`{url}` is not an address: {e}")))?;
    if !matches!(endpoint.scheme(), "http" | "https") || !endpoint.has_host() {
        return Err(usage(format!("`{url}` is not an address of a server")));
    }
    if !endpoint.username().is_empty() || endpoint.password().is_some() {
        let what = "the address of the server holds a name or password, and addresses are written into runs";
        return Err(Error::Usage(format!("{what}\n  next: leave it out, and put the server's key into `OPENAI_API_KEY`")));
    }
    let path = endpoint.path().trim_end_matches('/').to_string();
    endpoint.set_path(&if path.ends_with("/chat/completions") { path } else { format!("{path}/chat/completions") });
    Ok(endpoint)
}

fn check_interrupt() -> Result<()> {
    match interrupt::requested() {
        true => Err(Error::Interrupted { resume: "run the same command again; answers are kept".into() }),
        false => Ok(()),
    }
}

/// The next finished task; `None` when there is none left.
async fn next<T: 'static>(tasks: &mut JoinSet<T>) -> Result<Option<T>> {
    loop {
        tokio::select! {
            finished = tasks.join_next() => match finished {
                None => return Ok(None),
                Some(Ok(value)) => return Ok(Some(value)),
                Some(Err(e)) => return Err(Error::environment(format!("a request failed: {e}"), "run the same command again")),
            },
            () = tokio::time::sleep(TICK) => check_interrupt()?,
        }
    }
}

/// One attempt.
async fn post(
    http: reqwest::Client,
    endpoint: reqwest::Url,
    key: Option<String>,
    body: String,
) -> std::result::Result<Answer, Failure> {
    let asked = body.len();
    let mut request = http.post(endpoint).header("content-type", "application/json").body(body);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let mut response = request.send().await.map_err(|e| network(&e))?;
    let status = response.status();
    let pause =
        response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| network(&e))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_BYTES {
            return Err(unusable(format!("an answer of more than {} MiB", MAX_BYTES >> 20)));
        }
    }
    if status.is_success() {
        return parse(&bytes, asked);
    }
    let again = status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429);
    let why = match status.as_u16() {
        401 | 403 if excerpt(&bytes).is_empty() => {
            format!("status {status}: the key in `OPENAI_API_KEY` is missing or not accepted")
        }
        _ => format!("status {status} {}", excerpt(&bytes)).trim().to_string(),
    };
    Err(Failure { why, again, pause, charged: false })
}

/// No answer because of the connection. The address is left out: it may hold a key.
fn network(error: &reqwest::Error) -> Failure {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let why = if error.is_timeout() { "no answer in time".to_string() } else { format!("no connection ({cause})") };
    Failure { why, again: true, pause: None, charged: !error.is_connect() }
}

fn unusable(why: String) -> Failure {
    Failure { why, again: true, pause: None, charged: true }
}

/// The answer in a response of success; `asked` is the length of the request in bytes.
fn parse(bytes: &[u8], asked: usize) -> std::result::Result<Answer, Failure> {
    let not_one = || unusable(format!("an answer that is no chat completion: {}", excerpt(bytes)));
    let value: Value = serde_json::from_slice(bytes).map_err(|_| not_one())?;
    let choice = value.pointer("/choices/0").ok_or_else(not_one)?;
    let text = choice.pointer("/message/content").and_then(Value::as_str).ok_or_else(not_one)?;
    // What the server says it counted, unless that is less than text can possibly be.
    let told = value.pointer("/usage/total_tokens").and_then(Value::as_u64).unwrap_or(0);
    let least = ((asked + text.len()) / 16) as u64;
    Ok(Answer { text: text.into(), cut: choice["finish_reason"] == "length", tokens: told.max(least) })
}

/// The beginning of a text for a message.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(800)]);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(200).collect()
}
