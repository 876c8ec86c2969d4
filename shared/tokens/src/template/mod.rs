//! Chat templates, rendered as Hugging Face's `apply_chat_template` renders them.
//!
//! The templates are written for Jinja2 with `trim_blocks`, `lstrip_blocks`, loop controls and a few helpers. minijinja
//! has nearly the same language; what differs in the output is put right here: Python's spelling of values, `tojson`
//! as `json.dumps` writes, strings and mappings counting as sequences, the `generation` tag.

mod conversation;
mod date;
mod format;
mod python;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};

use crate::error::EncodeError;
use conversation::Chat;
use format::ContentFormat;

const NAME: &str = "chat";

/// A compiled chat template with what it needs of its model.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, Value)>,
    format: ContentFormat,
    /// The template knows the role `developer`; engines turn it into `system` otherwise.
    knows_developer: bool,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are visible to it by name.
    ///
    /// # Errors
    /// What is wrong in the template, with the line.
    pub fn new(source: &str, special_tokens: &[(String, String)]) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(write_value);
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", to_string);
        environment.add_test("sequence", is_sequence);
        environment.add_test("iterable", is_sequence);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", date::now);
        environment
            .add_template_owned(NAME, without_generation(source))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            environment,
            special_tokens: special_tokens
                .iter()
                .map(|(name, text)| (name.clone(), Value::from(text.as_str())))
                .collect(),
            format: ContentFormat::detect(source),
            knows_developer: source.contains("\"developer\"") || source.contains("'developer'"),
        })
    }

    /// Renders the body of a chat completions request. The second value tells whether special tokens are put around
    /// the text.
    ///
    /// # Errors
    /// The body is not what engines accept, or the template refuses it.
    pub fn render(&self, body: &[u8]) -> Result<(String, bool), EncodeError> {
        let chat = Chat::read(body, self.format, self.knows_developer)?;
        let own = self.special_tokens.iter().map(|(name, value)| (name.clone(), value.clone()));
        let context = Value::from_pairs(own.chain(chat.variables));
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        let text = template.render(context).map_err(|error| failed(&error))?;
        Ok((text, chat.add_special))
    }
}

fn failed(error: &Error) -> EncodeError {
    EncodeError::Template(error.to_string())
}

/// The tag `generation` marks what the assistant said and writes nothing itself.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn write_value(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => return Ok(()),
        None => out.write_str(&python::repr(value)),
    };
    written.map_err(|_| Error::new(ErrorKind::WriteFailure, "cannot write"))
}

fn to_string(value: &Value) -> Value {
    match value.as_str() {
        Some(text) => Value::from(text),
        None if value.is_undefined() => Value::from(""),
        None => Value::from(python::repr(value)),
    }
}

fn to_json(value: &Value, more: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let positional = |index: usize| more.0.get(index).cloned();
    let named = |name: &str| options.get::<Option<Value>>(name).ok().flatten();
    let style = python::JsonStyle::new(
        positional(0).or_else(|| named("ensure_ascii")),
        positional(1).or_else(|| named("indent")),
        positional(2).or_else(|| named("separators")),
        positional(3).or_else(|| named("sort_keys")),
    )?;
    options.assert_all_used()?;
    Ok(Value::from(python::json(value, &style)?))
}

fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, body: &str) -> Result<String, EncodeError> {
        let tokens = [("bos_token".to_owned(), "<s>".to_owned())];
        ChatTemplate::new(source, &tokens).unwrap().render(body.as_bytes()).map(|(text, _)| text)
    }

    #[test]
    fn values_are_spelled_as_python_spells_them() {
        let body = r#"{"messages":[{"role":"user","content":"é"}],
            "chat_template_kwargs":{"v":{"a":[1,2.0,true,null,"é'\n"],"b":1e-7},"big":1e16}}"#;
        let cases = [
            ("{{ v }}", r#"{'a': [1, 2.0, True, None, "é'\n"], 'b': 1e-07}"#),
            ("{{ v|tojson }}", r#"{"a": [1, 2.0, true, null, "é'\n"], "b": 1e-07}"#),
            ("{{ v|tojson(ensure_ascii=true) }}", r#"{"a": [1, 2.0, true, null, "\u00e9'\n"], "b": 1e-07}"#),
            ("{{ v.a|tojson(separators=(',', ':')) }}", r#"[1,2.0,true,null,"é'\n"]"#),
            ("{{ {'b': [], 'a': {}}|tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": {},\n  \"b\": []\n}"),
            ("{{ big }} {{ none }} {{ missing }}|{{ true }}", "1e+16 None |True"),
            ("{{ bos_token }}{{ eos_token is defined }}", "<s>False"),
            ("{{ 'abc' is sequence }} {{ 'abc' is iterable }} {{ v is mapping }}", "True True True"),
            ("{{ (1)|string ~ 'x' }}{{ ' a '.strip() }}{{ 'a,b'.split(',')[-1] }}", "1xab"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, body).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn blocks_are_trimmed_and_generation_is_transparent() {
        let source = "{% for m in messages %}\n    {% generation %}\n[{{ m.content }}]\n    {%- endgeneration %}\n{% endfor %}\n";
        let body = r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}"#;
        assert_eq!(render(source, body).unwrap(), "[a][b]");
        let source = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}";
        assert_eq!(render(source, body).unwrap(), "b");
    }

    #[test]
    fn a_template_may_refuse() {
        let error =
            render("{{ raise_exception('roles must alternate') }}", r#"{"messages":[]}"#).unwrap_err();
        assert!(
            matches!(&error, EncodeError::Template(why) if why.contains("roles must alternate")),
            "{error}"
        );
        let wrong = ChatTemplate::new("{% for %}", &[]).err().unwrap();
        assert!(wrong.contains("chat:1"), "{wrong}");
    }
}
