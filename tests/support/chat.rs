//! A server on this machine that speaks OpenAI's chat protocol, well or badly.
#![allow(dead_code)]

use datum::prompting::{Grammar, Request, Template};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How a request is treated.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The prompts that were asked for.
    Good,
    /// The same after a while.
    Slow(Duration),
    /// Never.
    Hang,
    /// A status with headers and a body.
    Status(u16, &'static str, &'static str),
    /// Success with this body.
    Body(String),
    /// Success with this text as the model's answer.
    Says(String),
    /// The connection ends before any answer.
    Close,
    /// The connection ends within the answer.
    Half,
    /// Good lines between others that are no prompts, the last one cut off.
    Lies,
}

/// What the server saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Heads and bodies of all requests.
    pub requests: Vec<(String, Value)>,
    /// Requests at one time.
    pub now: usize,
    /// The most of them.
    pub most: usize,
    /// Tokens of all usable answers.
    pub tokens: u64,
}

/// See the module.
pub struct Chat {
    pub url: String,
    pub seen: Arc<Mutex<Seen>>,
    _runtime: tokio::runtime::Runtime,
}

impl Chat {
    /// Treats the first requests as `script` says, all others as `after` says.
    pub fn start(script: &[Reply], after: Reply) -> Self {
        Self::start_at("http://127.0.0.1:0/v1", script, after)
    }

    /// Like [`Self::start`] at the address of an earlier server.
    pub fn start_at(url: &str, script: &[Reply], after: Reply) -> Self {
        let address = url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(VecDeque::from(script.to_vec())));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watched = seen.clone();
        runtime.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (script, seen, after) = (script.clone(), watched.clone(), after.clone());
                tokio::spawn(async move {
                    // One connection may carry several requests.
                    while let Some((head, body)) = receive(&mut socket).await {
                        let reply = {
                            let mut seen = seen.lock().unwrap();
                            seen.requests.push((head, body.clone()));
                            seen.now += 1;
                            seen.most = seen.most.max(seen.now);
                            script.lock().unwrap().pop_front().unwrap_or(after.clone())
                        };
                        let going_on = respond(&mut socket, &reply, &body, &seen).await;
                        seen.lock().unwrap().now -= 1;
                        if !going_on {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, seen, _runtime: runtime }
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests.len()
    }
}

async fn receive(socket: &mut TcpStream) -> Option<(String, Value)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("POST /v1/chat/completions "), "{head}");
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
    let mut body = vec![0; length.unwrap()];
    socket.read_exact(&mut body).await.ok()?;
    Some((head, serde_json::from_slice(&body).unwrap()))
}

/// False when the connection is over.
async fn respond(socket: &mut TcpStream, reply: &Reply, request: &Value, seen: &Arc<Mutex<Seen>>) -> bool {
    let (status, headers, body) = match reply {
        Reply::Close => return false,
        Reply::Hang => return std::future::pending().await,
        Reply::Status(status, headers, body) => (*status, *headers, body.to_string()),
        Reply::Body(body) => (200, "", body.clone()),
        Reply::Says(text) => (200, "", completion(text, request, "stop", seen)),
        Reply::Lies => (200, "", completion(&lies(&good(request)), request, "length", seen)),
        Reply::Half | Reply::Good => (200, "", completion(&good(request), request, "stop", seen)),
        Reply::Slow(pause) => {
            tokio::time::sleep(*pause).await;
            (200, "", completion(&good(request), request, "stop", seen))
        }
    };
    let head =
        format!("HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    let mut bytes = [head.as_bytes(), body.as_bytes()].concat();
    if *reply == Reply::Half {
        bytes.truncate(bytes.len() / 2);
    }
    socket.write_all(&bytes).await.is_ok() && *reply != Reply::Half
}

/// Tokens that a completion costs here.
pub const TOKENS: u64 = 900;

fn completion(text: &str, request: &Value, finish: &str, seen: &Arc<Mutex<Seen>>) -> String {
    seen.lock().unwrap().tokens += TOKENS;
    json!({
        "object": "chat.completion",
        "model": request["model"],
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": finish }],
        "usage": { "total_tokens": TOKENS },
    })
    .to_string()
}

/// What a well-behaved model says: it depends on the request alone.
fn good(request: &Value) -> String {
    let user = request["messages"][1]["content"].as_str().unwrap();
    let between = |start: &str, end: &str| user.split_once(start).unwrap().1.split_once(end).unwrap().0.to_string();
    let grammar = Grammar::open("").unwrap();
    let name = between("- shows ", " in a street");
    let class = grammar.class.iter().position(|class| class.name == name).unwrap();
    let lines = between("Write ", " prompts").parse().unwrap();
    let seed = request["seed"].as_u64().unwrap();
    let asked = Request { number: seed, class, lines, seed: 99, system: String::new(), user: String::new() };
    Template::new(grammar).answer(&asked).text
}

fn lies(good: &str) -> String {
    let lines: Vec<&str> = good.lines().collect();
    let mut said = vec!["Sure! Here are your prompts:".to_string(), String::new()];
    for (number, line) in lines.iter().enumerate() {
        said.push(format!("{}. \"{line}.\"", number + 1));
        said.push(match number % 4 {
            0 => line.replace("photo", "snapshot"),
            1 => "A photo of something else entirely that nobody asked for at dawn".into(),
            2 => "A photo of caf\u{e9}s {identifier} at dawn in the rain near us".into(),
            _ => "As a language model I cannot look out of the window".into(),
        });
    }
    said.push("A photo of a".into());
    said.join("\n")
}
