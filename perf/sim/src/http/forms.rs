//! The four shapes in which generated tokens are told: chat, completions, responses and messages; as a stream of
//! server-sent events and as one body.

use crate::text;
use serde_json::{Value, json};
use std::io::Write;

/// Which shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Chat,
    Completions,
    Responses,
    Messages,
}

/// One answer inside a response.
#[derive(Clone, Debug)]
pub(crate) struct SeqMeta {
    pub index: u32,
    pub seed: u64,
    /// Tokens of the answer that another engine has told.
    pub skip: u32,
    pub output: u32,
    /// Whether it ended by the request's limit.
    pub limited: bool,
}

impl SeqMeta {
    fn text(&self) -> String {
        (self.skip..self.skip.saturating_add(self.output)).map(|n| text::token(self.seed, n)).collect()
    }
}

/// Token counts of a response.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub prompt: u32,
    pub cached: u32,
    pub completion: u32,
}

/// All that a response says besides tokens.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub form: Form,
    pub id: String,
    pub created: u64,
    pub model: String,
    /// The model as JSON.
    pub model_json: String,
    pub seqs: Vec<SeqMeta>,
    pub include_usage: bool,
    pub continuous_usage: bool,
    pub max_tokens: Option<u32>,
}

fn usage_json(u: Usage) -> String {
    format!(
        r#"{{"prompt_tokens":{},"total_tokens":{},"completion_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}}}}"#,
        u.prompt,
        u.prompt + u.completion,
        u.completion,
        u.cached
    )
}

/// Writes one response as events. Keeps the sequence number that responses need.
pub(crate) struct EventWriter {
    pub meta: Meta,
    number: u64,
}

impl EventWriter {
    pub fn new(meta: Meta) -> Self {
        Self { meta, number: 0 }
    }

    /// What comes before the first token.
    pub fn open(&mut self, out: &mut Vec<u8>, usage: Usage) {
        match self.meta.form {
            Form::Chat => {
                for i in 0..self.meta.seqs.len() {
                    let m = &self.meta;
                    _ = write!(
                        out,
                        "data: {{\"id\":\"chatcmpl-{}\",\"object\":\"chat.completion.chunk\",\"created\":{},\
                         \"model\":{},\"choices\":[{{\"index\":{},\"delta\":{{\"role\":\"assistant\",\
                         \"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n",
                        m.id, m.created, m.model_json, m.seqs[i].index
                    );
                }
            }
            Form::Completions => {}
            Form::Messages => {
                let m = &self.meta;
                let start = json!({"type": "message_start", "message": {
                    "id": format!("msg_{}", m.id), "type": "message", "role": "assistant", "content": [],
                    "model": m.model, "stop_reason": null, "stop_sequence": null,
                    "usage": messages_usage(Usage { completion: 0, ..usage })}});
                event(out, "message_start", &start);
                let block = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}});
                event(out, "content_block_start", &block);
            }
            Form::Responses => {
                let response = self.response("in_progress", None, Value::Null);
                self.numbered(out, "response.created", json!({"response": response.clone()}));
                self.numbered(out, "response.in_progress", json!({"response": response}));
                let item = self.item("in_progress", None);
                self.numbered(out, "response.output_item.added", json!({"output_index": 0, "item": item}));
                let id = self.item_id();
                let part = json!({"item_id": id, "output_index": 0, "content_index": 0,
                    "part": {"type": "output_text", "text": "", "annotations": [], "logprobs": []}});
                self.numbered(out, "response.content_part.added", part);
            }
        }
    }

    /// Token `n` of answer `at`; `last` if it ends the answer.
    pub fn token(&mut self, out: &mut Vec<u8>, at: usize, n: u32, last: bool, usage: Usage) {
        let seq = &self.meta.seqs[at];
        let token = text::token(seq.seed, seq.skip + n);
        match self.meta.form {
            Form::Chat | Form::Completions => {
                let m = &self.meta;
                let chat = m.form == Form::Chat;
                let (id, object) =
                    if chat { ("chatcmpl", "chat.completion.chunk") } else { ("cmpl", "text_completion") };
                _ = write!(
                    out,
                    "data: {{\"id\":\"{id}-{}\",\"object\":\"{object}\",\"created\":{},\"model\":{},\
                     \"choices\":[{{\"index\":{},",
                    m.id, m.created, m.model_json, seq.index
                );
                _ = if chat {
                    write!(out, "\"delta\":{{\"content\":\"{token}\"}},\"logprobs\":null,\"finish_reason\":")
                } else {
                    write!(out, "\"text\":\"{token}\",\"logprobs\":null,\"finish_reason\":")
                };
                _ = match (last, seq.limited) {
                    (false, _) => write!(out, "null}}]"),
                    (true, true) => write!(out, "\"length\",\"stop_reason\":null}}]"),
                    (true, false) => write!(out, "\"stop\",\"stop_reason\":null}}]"),
                };
                if m.continuous_usage {
                    _ = write!(out, ",\"usage\":{}", usage_json(usage));
                }
                out.extend_from_slice(b"}\n\n");
            }
            Form::Messages => {
                _ = write!(
                    out,
                    "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
                     \"delta\":{{\"type\":\"text_delta\",\"text\":\"{token}\"}}}}\n\n"
                );
            }
            Form::Responses => {
                _ = write!(
                    out,
                    "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\
                     \"sequence_number\":{},\"item_id\":\"msg_{}\",\"output_index\":0,\"content_index\":0,\
                     \"delta\":\"{token}\",\"logprobs\":[]}}\n\n",
                    self.number, self.meta.id
                );
                self.number += 1;
            }
        }
    }

    /// What comes after the last token.
    pub fn close(&mut self, out: &mut Vec<u8>, usage: Usage) {
        match self.meta.form {
            Form::Chat | Form::Completions => {
                let m = &self.meta;
                if m.include_usage {
                    let (id, object) = if m.form == Form::Chat {
                        ("chatcmpl", "chat.completion.chunk")
                    } else {
                        ("cmpl", "text_completion")
                    };
                    _ = write!(
                        out,
                        "data: {{\"id\":\"{id}-{}\",\"object\":\"{object}\",\"created\":{},\"model\":{},\
                         \"choices\":[],\"usage\":{}}}\n\n",
                        m.id,
                        m.created,
                        m.model_json,
                        usage_json(usage)
                    );
                }
                out.extend_from_slice(b"data: [DONE]\n\n");
            }
            Form::Messages => {
                event(out, "content_block_stop", &json!({"type": "content_block_stop", "index": 0}));
                let delta = json!({"type": "message_delta",
                    "delta": {"stop_reason": self.stop_reason(), "stop_sequence": null},
                    "usage": messages_usage(usage)});
                event(out, "message_delta", &delta);
                event(out, "message_stop", &json!({"type": "message_stop"}));
            }
            Form::Responses => {
                let text = self.meta.seqs.first().map_or(String::new(), SeqMeta::text);
                let id = self.item_id();
                let done = json!({"item_id": id, "output_index": 0, "content_index": 0, "text": text, "logprobs": []});
                self.numbered(out, "response.output_text.done", done);
                let part = json!({"item_id": id, "output_index": 0, "content_index": 0,
                    "part": {"type": "output_text", "text": text, "annotations": [], "logprobs": []}});
                self.numbered(out, "response.content_part.done", part);
                let item = self.item("completed", Some(&text));
                self.numbered(out, "response.output_item.done", json!({"output_index": 0, "item": item}));
                let response = self.response("completed", Some(&text), responses_usage(usage));
                self.numbered(out, "response.completed", json!({"response": response}));
            }
        }
    }

    /// The end of a stream that failed.
    pub fn failed(&self, out: &mut Vec<u8>, error: &Value) {
        match self.meta.form {
            Form::Chat | Form::Completions => _ = write!(out, "data: {error}\n\ndata: [DONE]\n\n"),
            Form::Messages | Form::Responses => event(out, "error", error),
        }
    }

    /// The whole answer as one body, with `kv_transfer_params` if there are any.
    pub fn full(&self, usage: Usage, kv_transfer_params: Option<&str>) -> Vec<u8> {
        let m = &self.meta;
        let finish = |s: &SeqMeta| if s.limited { "length" } else { "stop" };
        let usage_value: Value = serde_json::from_str(&usage_json(usage)).unwrap_or_default();
        let body = match m.form {
            Form::Chat => json!({
                "id": format!("chatcmpl-{}", m.id), "object": "chat.completion", "created": m.created,
                "model": m.model, "choices": m.seqs.iter().map(|s| json!({
                    "index": s.index,
                    "message": {"role": "assistant", "content": s.text(), "refusal": null,
                        "tool_calls": []},
                    "logprobs": null, "finish_reason": finish(s), "stop_reason": null})).collect::<Vec<_>>(),
                "service_tier": null, "system_fingerprint": null, "usage": usage_value}),
            Form::Completions => json!({
                "id": format!("cmpl-{}", m.id), "object": "text_completion", "created": m.created,
                "model": m.model, "choices": m.seqs.iter().map(|s| json!({
                    "index": s.index, "text": s.text(), "logprobs": null,
                    "finish_reason": finish(s), "stop_reason": null})).collect::<Vec<_>>(),
                "usage": usage_value}),
            Form::Messages => json!({
                "id": format!("msg_{}", m.id), "type": "message", "role": "assistant", "model": m.model,
                "content": m.seqs.iter()
                    .map(|s| json!({"type": "text", "text": s.text()})).collect::<Vec<_>>(),
                "stop_reason": self.stop_reason(), "stop_sequence": null, "usage": messages_usage(usage)}),
            Form::Responses => {
                let text = m.seqs.first().map_or(String::new(), SeqMeta::text);
                self.response("completed", Some(&text), responses_usage(usage))
            }
        };
        let mut text = body.to_string().into_bytes();
        if let Some(params) = kv_transfer_params {
            text.pop();
            _ = write!(text, ",\"kv_transfer_params\":{params}}}");
        }
        text
    }

    fn stop_reason(&self) -> &'static str {
        if self.meta.seqs.iter().any(|s| s.limited) { "max_tokens" } else { "end_turn" }
    }

    fn item_id(&self) -> String {
        format!("msg_{}", self.meta.id)
    }

    fn item(&self, status: &str, text: Option<&str>) -> Value {
        let content = match text {
            Some(t) => json!([{"type": "output_text", "text": t, "annotations": [], "logprobs": []}]),
            None => json!([]),
        };
        json!({"id": self.item_id(), "type": "message", "role": "assistant", "status": status, "content": content})
    }

    fn response(&self, status: &str, text: Option<&str>, usage: Value) -> Value {
        let m = &self.meta;
        let output = match text {
            Some(t) => json!([self.item("completed", Some(t))]),
            None => json!([]),
        };
        json!({
            "id": format!("resp_{}", m.id), "object": "response", "created_at": m.created, "status": status,
            "error": null, "incomplete_details": null, "instructions": null, "max_output_tokens": m.max_tokens,
            "metadata": {}, "model": m.model, "output": output, "parallel_tool_calls": true,
            "previous_response_id": null, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
            "truncation": "disabled", "usage": usage})
    }

    fn numbered(&mut self, out: &mut Vec<u8>, name: &str, mut body: Value) {
        body["type"] = json!(name);
        body["sequence_number"] = json!(self.number);
        self.number += 1;
        event(out, name, &body);
    }
}

fn event(out: &mut Vec<u8>, name: &str, body: &Value) {
    _ = write!(out, "event: {name}\ndata: {body}\n\n");
}

/// Anthropic counts cached input apart from input.
fn messages_usage(u: Usage) -> Value {
    json!({"input_tokens": u.prompt - u.cached, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": u.cached, "output_tokens": u.completion})
}

fn responses_usage(u: Usage) -> Value {
    json!({"input_tokens": u.prompt, "input_tokens_details": {"cached_tokens": u.cached},
        "output_tokens": u.completion, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": u.prompt + u.completion})
}
