//! The prompt of a completions request.

use serde::Deserialize;
use serde_json::Value;

use crate::error::EncodeError;

/// One prompt.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Text, still to be tokenised.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    prompt: Option<Prompts>,
    #[serde(default)]
    add_special_tokens: Option<bool>,
    #[serde(default)]
    prompt_embeds: Option<Value>,
    #[serde(default)]
    truncate_prompt_tokens: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    One(Prompt),
    Many(Vec<Prompt>),
}

/// The prompt, and whether special tokens are put around a text.
///
/// # Errors
/// There is none or several, or something else than text and ids enters it.
pub fn read(body: &[u8]) -> Result<(Prompt, bool), EncodeError> {
    let body: Body = serde_json::from_slice(body).map_err(|error| EncodeError::Body(error.to_string()))?;
    if body.prompt_embeds.is_some_and(|embeds| !embeds.is_null()) {
        return Err(EncodeError::Unsupported("prompt_embeds"));
    }
    if body.truncate_prompt_tokens.is_some_and(|limit| !limit.is_null()) {
        return Err(EncodeError::Unsupported("truncate_prompt_tokens"));
    }
    let prompt = match body.prompt {
        Some(Prompts::One(prompt)) => prompt,
        Some(Prompts::Many(mut prompts)) if prompts.len() == 1 => {
            prompts.pop().ok_or(EncodeError::Unsupported("several prompts"))?
        }
        Some(Prompts::Many(_)) => return Err(EncodeError::Unsupported("several prompts")),
        None => return Err(EncodeError::Body("prompt: missing".into())),
    };
    Ok((prompt, body.add_special_tokens.unwrap_or(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_in_several_forms() {
        let text = |text: &str| Prompt::Text(text.into());
        for (body, expected) in [
            (r#"{"prompt":"a"}"#, (text("a"), true)),
            (r#"{"prompt":["a"],"add_special_tokens":false}"#, (text("a"), false)),
            (r#"{"prompt":[1,2]}"#, (Prompt::Ids(vec![1, 2]), true)),
            (r#"{"prompt":[[3]]}"#, (Prompt::Ids(vec![3]), true)),
        ] {
            assert_eq!(read(body.as_bytes()).unwrap(), expected, "{body}");
        }
        for body in [
            "",
            "[]",
            "{}",
            r#"{"prompt":5}"#,
            r#"{"prompt":[-1]}"#,
            r#"{"prompt":["a","b"]}"#,
            r#"{"prompt":["a",1]}"#,
            r#"{"prompt":"a","prompt_embeds":"x"}"#,
            r#"{"prompt":"a","truncate_prompt_tokens":4}"#,
        ] {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
    }
}
