//! From the body of a chat completions request to what the template gets, as engines prepare it.
//!
//! Contents become text or parts; the arguments of tool calls become objects; tools get the members that the API has,
//! in its order; the role `developer` becomes `system` where the template does not know it. The rules are those of
//! vLLM (`renderers/chat_utils.py`, `renderers/hf.py`), which SGLang follows for text.

use minijinja::value::{Value, ValueKind};
use serde::Deserialize;

use super::format::ContentFormat;
use crate::error::EncodeError;

/// What the template gets.
pub struct Chat {
    /// Variables by name.
    pub variables: Vec<(String, Value)>,
    /// Special tokens are put around the rendered text.
    pub add_special: bool,
}

#[derive(Deserialize)]
struct Body {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    add_generation_prompt: Option<bool>,
    #[serde(default)]
    continue_final_message: Option<bool>,
    #[serde(default)]
    add_special_tokens: Option<bool>,
    #[serde(default)]
    chat_template: Option<Value>,
    #[serde(default)]
    chat_template_kwargs: Option<Value>,
    #[serde(default)]
    documents: Option<Value>,
    #[serde(default)]
    reasoning_effort: Option<String>,
    #[serde(default)]
    truncate_prompt_tokens: Option<Value>,
}

impl Chat {
    /// Reads a body.
    ///
    /// # Errors
    /// It is not what engines accept, or it has something whose tokens only the engine knows.
    pub fn read(body: &[u8], format: ContentFormat, knows_developer: bool) -> Result<Self, EncodeError> {
        let body: Body =
            serde_json::from_slice(body).map_err(|error| EncodeError::Body(error.to_string()))?;
        if body.chat_template.is_some_and(|own| !own.is_none()) {
            return Err(EncodeError::Unsupported("a chat template of its own"));
        }
        if body.continue_final_message == Some(true) {
            return Err(EncodeError::Unsupported("continue_final_message"));
        }
        if body.truncate_prompt_tokens.is_some_and(|limit| !limit.is_none()) {
            return Err(EncodeError::Unsupported("truncate_prompt_tokens"));
        }
        let mut messages = Vec::with_capacity(body.messages.len());
        for message in &body.messages {
            messages.push(Message::read(message, format)?);
        }
        if !knows_developer && messages.iter().any(|message| message.role == "developer") {
            messages = without_developer(messages);
        }
        let messages: Vec<Value> = messages.into_iter().map(Message::into_value).collect();
        let mut variables = vec![
            ("messages".to_owned(), Value::from(messages)),
            ("tools".to_owned(), tools(body.tools.as_deref())?),
            ("documents".to_owned(), body.documents.unwrap_or(Value::from(()))),
            ("add_generation_prompt".to_owned(), Value::from(body.add_generation_prompt.unwrap_or(true))),
        ];
        let mut thinking_set = false;
        if let Some(own) = &body.chat_template_kwargs
            && !own.is_none()
        {
            for key in
                own.try_iter().map_err(|_| EncodeError::Body("chat_template_kwargs: not an object".into()))?
            {
                let name = key.as_str().unwrap_or_default();
                // What the request says beside them wins; `tools` and `messages` are not theirs to set.
                if matches!(name, "messages" | "tools" | "documents" | "chat_template" | "tokenize") {
                    return Err(EncodeError::Unsupported("template arguments that replace the conversation"));
                }
                thinking_set |= name == "enable_thinking";
                let overridden = name == "reasoning_effort" && body.reasoning_effort.is_some();
                if !overridden && name != "add_generation_prompt" {
                    variables.push((name.to_owned(), member(own, name)));
                }
            }
        }
        if let Some(effort) = &body.reasoning_effort {
            variables.push(("reasoning_effort".to_owned(), Value::from(effort.as_str())));
            if !thinking_set {
                variables.push(("enable_thinking".to_owned(), Value::from(effort != "none")));
            }
        }
        Ok(Self { variables, add_special: body.add_special_tokens.unwrap_or(false) })
    }
}

struct Message {
    role: String,
    content: Value,
    /// Members after `role` and `content`.
    more: Vec<(&'static str, Value)>,
}

fn member(object: &Value, name: &str) -> Value {
    object.get_attr(name).unwrap_or_default()
}

/// A member that is neither absent nor null.
fn given(object: &Value, name: &str) -> Option<Value> {
    Some(member(object, name)).filter(|value| !value.is_undefined() && !value.is_none())
}

impl Message {
    fn read(message: &Value, format: ContentFormat) -> Result<Self, EncodeError> {
        if message.kind() != ValueKind::Map {
            return Err(EncodeError::Body("messages: not an object".into()));
        }
        let role = given(message, "role").and_then(|role| role.as_str().map(str::to_owned));
        let role = role.ok_or_else(|| EncodeError::Body("messages: a message without a role".into()))?;
        let parts = parts(&member(message, "content"))?;
        let text = || {
            parts.iter().filter(|text| !text.is_empty()).map(String::as_str).collect::<Vec<_>>().join("\n")
        };
        let content = match format {
            ContentFormat::Text => Value::from(text()),
            // Engines give tool results as text whatever the template takes.
            ContentFormat::Parts if role == "tool" => Value::from(parts.join("\n")),
            ContentFormat::Parts => {
                let part = |text: &String| Value::from_pairs([("type", "text"), ("text", text.as_str())]);
                Value::from(parts.iter().map(part).collect::<Vec<_>>())
            }
        };
        let mut more = Vec::new();
        if role == "assistant" {
            if let Some(calls) = given(message, "tool_calls") {
                let calls = tool_calls(&calls)?;
                if !calls.is_empty() {
                    more.push(("tool_calls", Value::from(calls)));
                }
            }
            if let Some(reasoning) = given(message, "reasoning") {
                for name in ["reasoning", "reasoning_content", "thinking"] {
                    more.push((name, reasoning.clone()));
                }
            }
        }
        if role == "tool" {
            let id = member(message, "tool_call_id");
            if !id.is_undefined() {
                more.push(("tool_call_id", id));
            }
        }
        if let Some(name) = given(message, "name").filter(|name| name.as_str().is_some()) {
            more.push(("name", name));
        }
        if role == "developer" {
            more.push(("tools", given(message, "tools").unwrap_or(Value::from(()))));
        }
        Ok(Self { role, content, more })
    }

    fn into_value(self) -> Value {
        let head = [("role", Value::from(self.role)), ("content", self.content)];
        Value::from_pairs(head.into_iter().chain(self.more))
    }
}

/// The texts of a content, whatever its form.
fn parts(content: &Value) -> Result<Vec<String>, EncodeError> {
    if content.is_undefined() || content.is_none() {
        return Ok(Vec::new());
    }
    if let Some(text) = content.as_str() {
        return Ok(vec![text.to_owned()]);
    }
    let form = || EncodeError::Body("content: not a string or an array of parts".into());
    if content.kind() != ValueKind::Seq {
        return Err(form());
    }
    let mut texts = Vec::new();
    for part in content.try_iter().map_err(|_| form())? {
        if let Some(text) = part.as_str() {
            texts.push(text.to_owned());
            continue;
        }
        let kind = given(&part, "type");
        let name = match kind.as_ref().and_then(Value::as_str) {
            Some("text" | "input_text" | "output_text") | None => "text",
            Some("refusal") => "refusal",
            Some("thinking") => "thinking",
            Some(_) => return Err(EncodeError::Unsupported("content that is not text")),
        };
        match given(&part, name) {
            Some(text) => texts.push(text.as_str().ok_or_else(form)?.to_owned()),
            None if kind.is_some() => {}
            None => return Err(EncodeError::Unsupported("content that is not text")),
        }
    }
    Ok(texts)
}

/// Tool calls with their arguments as objects.
fn tool_calls(calls: &Value) -> Result<Vec<Value>, EncodeError> {
    let wrong = || EncodeError::Body("tool_calls: not an array of function calls".into());
    let mut out = Vec::new();
    for call in calls.try_iter().map_err(|_| wrong())? {
        let function = given(&call, "function").filter(|function| function.kind() == ValueKind::Map);
        let function = function.ok_or_else(wrong)?;
        let arguments = match given(&function, "arguments") {
            Some(object) if object.kind() == ValueKind::Map => object,
            Some(text) => text.as_str().and_then(object_in).unwrap_or_else(empty_object),
            None => empty_object(),
        };
        let function = replaced(&function, "arguments", arguments);
        out.push(replaced(&call, "function", function));
    }
    Ok(out)
}

fn object_in(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().filter(|value: &Value| value.kind() == ValueKind::Map)
}

fn empty_object() -> Value {
    Value::from_pairs(std::iter::empty::<(&str, Value)>())
}

/// The object with one member replaced in its place, or added at the end.
fn replaced(object: &Value, name: &str, value: Value) -> Value {
    let mut pairs = Vec::new();
    let mut found = false;
    for key in object.try_iter().into_iter().flatten() {
        let is_it = key.as_str() == Some(name);
        found |= is_it;
        let old = object.get_item(&key).unwrap_or_default();
        pairs.push((key, if is_it { value.clone() } else { old }));
    }
    if !found {
        pairs.push((Value::from(name), value));
    }
    Value::from_pairs(pairs)
}

/// Tools with the members that the API has, in its order.
fn tools(tools: Option<&[Value]>) -> Result<Value, EncodeError> {
    let Some(tools) = tools else { return Ok(Value::from(())) };
    let mut out = Vec::with_capacity(tools.len());
    for tool in tools {
        let function = given(tool, "function").filter(|function| function.kind() == ValueKind::Map);
        let function =
            function.ok_or_else(|| EncodeError::Body("tools: a tool without a function".into()))?;
        let or_none = |name| given(&function, name).unwrap_or(Value::from(()));
        let mut members = vec![
            ("name", or_none("name")),
            ("description", or_none("description")),
            ("parameters", or_none("parameters")),
        ];
        members.extend(given(&function, "strict").map(|strict| ("strict", strict)));
        let kind = given(tool, "type").unwrap_or(Value::from("function"));
        out.push(Value::from_pairs([("type", kind), ("function", Value::from_pairs(members))]));
    }
    Ok(Value::from(out))
}

/// `developer` as `system`, and all system messages in one at the beginning unless the only one stands there.
fn without_developer(messages: Vec<Message>) -> Vec<Message> {
    let mut system = Vec::new();
    let mut others = Vec::new();
    let mut merge = false;
    for (index, mut message) in messages.into_iter().enumerate() {
        if message.role == "developer" {
            message.role = "system".to_owned();
            message.more.retain(|(name, _)| *name != "tools");
        }
        if message.role == "system" {
            merge |= index > 0;
            system.push(message);
        } else {
            others.push(message);
        }
    }
    if merge {
        let texts: Vec<String> = system.iter().map(|message| joined(&message.content)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        let content = Value::from(texts.join("\n\n"));
        system = vec![Message { role: "system".to_owned(), content, more: Vec::new() }];
    }
    system.extend(others);
    system
}

fn joined(content: &Value) -> String {
    if let Some(text) = content.as_str() {
        return text.to_owned();
    }
    let texts = content.try_iter().into_iter().flatten().map(|part| member(&part, "text"));
    let texts: Vec<String> = texts.filter_map(|text| text.as_str().map(str::to_owned)).collect();
    texts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::python;

    fn messages(body: &str, format: ContentFormat, knows_developer: bool) -> Result<String, EncodeError> {
        let chat = Chat::read(body.as_bytes(), format, knows_developer)?;
        let found =
            chat.variables.iter().find(|(name, _)| name == "messages").map(|(_, value)| value.clone());
        let style = python::JsonStyle::new(None, None, None, None).unwrap();
        Ok(python::json(&found.unwrap(), &style).unwrap())
    }

    #[test]
    fn contents_become_text_or_parts() {
        use ContentFormat::{Parts, Text};
        let body = r#"{"messages":[{"role":"user","content":["a",{"type":"text","text":"b"},{"type":"text","text":""}]},
            {"role":"assistant","content":null},{"role":"tool","content":[{"type":"text","text":"x"},"y"]}]}"#;
        assert_eq!(
            messages(body, Text, true).unwrap(),
            r#"[{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": ""}, {"role": "tool", "content": "x\ny"}]"#
        );
        assert_eq!(
            messages(body, Parts, true).unwrap(),
            r#"[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "text", "text": ""}]}, {"role": "assistant", "content": []}, {"role": "tool", "content": "x\ny"}]"#
        );
    }

    #[test]
    fn arguments_of_calls_become_objects() {
        for (arguments, expected) in [
            (r#""{\"a\": 1.0}""#, r#"{"a": 1.0}"#),
            (r#""[1]""#, "{}"),
            (r#""not json""#, "{}"),
            ("null", "{}"),
            (r#"{"b":2}"#, r#"{"b": 2}"#),
        ] {
            let body = format!(
                r#"{{"messages":[{{"role":"assistant","content":"","tool_calls":[{{"id":"1","function":{{"arguments":{arguments},"name":"f"}}}}]}}]}}"#
            );
            let expected = format!(
                r#"[{{"role": "assistant", "content": "", "tool_calls": [{{"id": "1", "function": {{"arguments": {expected}, "name": "f"}}}}]}}]"#
            );
            assert_eq!(messages(&body, ContentFormat::Text, true).unwrap(), expected);
        }
    }

    #[test]
    fn developers_become_the_system() {
        let body = r#"{"messages":[{"role":"user","content":"u"},{"role":"developer","content":"d"},{"role":"system","content":"s"}]}"#;
        assert_eq!(
            messages(body, ContentFormat::Text, false).unwrap(),
            r#"[{"role": "system", "content": "d\n\ns"}, {"role": "user", "content": "u"}]"#
        );
        let known = messages(body, ContentFormat::Text, true).unwrap();
        assert!(known.contains(r#"{"role": "developer", "content": "d", "tools": null}"#), "{known}");
    }

    #[test]
    fn what_only_the_engine_knows_is_told_apart() {
        for body in [
            r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#,
            r#"{"messages":[],"chat_template":"x"}"#,
            r#"{"messages":[],"continue_final_message":true}"#,
            r#"{"messages":[],"truncate_prompt_tokens":5}"#,
            r#"{"messages":[],"chat_template_kwargs":{"messages":[]}}"#,
        ] {
            let error = messages(body, ContentFormat::Text, true).unwrap_err();
            assert!(matches!(error, EncodeError::Unsupported(_)), "{body}: {error}");
        }
        for body in [
            "",
            "{}",
            "[]",
            r#"{"messages":{}}"#,
            r#"{"messages":[1]}"#,
            r#"{"messages":[{}]}"#,
            r#"{"messages":[{"role":"user","content":5}]}"#,
            r#"{"messages":[],"tools":[{}]}"#,
            r#"{"messages":[{"role":"assistant","tool_calls":[1]}]}"#,
            r#"{"messages":[],"chat_template_kwargs":5}"#,
        ] {
            let error = messages(body, ContentFormat::Text, true).unwrap_err();
            assert!(matches!(error, EncodeError::Body(_)), "{body}: {error}");
        }
    }
}
