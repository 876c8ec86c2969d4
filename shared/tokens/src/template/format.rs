//! Whether a template takes a message's content as text or as a list of parts.
//!
//! Engines look into the template: one that loops over the content of a message takes parts, any other gets text. The
//! same is found here from the template's tags, without a parse tree: which names hold the messages, a message, or a
//! message's content passed to a macro, and whether a loop runs over the content.

/// Form in which a template gets contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentFormat {
    /// A string; parts are joined by newlines.
    Text,
    /// A list of `{"type": "text", "text": ...}`; a string becomes a list of one.
    Parts,
}

/// A tag or an expression of a template.
enum Piece<'s> {
    For { target: &'s str, over: &'s str, in_macro: Option<usize> },
    Set { target: &'s str, value: &'s str },
    Other(&'s str),
}

struct Macro<'s> {
    name: &'s str,
    parameters: Vec<&'s str>,
}

impl ContentFormat {
    /// What a template takes.
    pub fn detect(source: &str) -> Self {
        let (pieces, macros) = read(source);
        let messages = with_aliases("messages", &pieces);
        let mut message_names = Vec::new();
        for piece in &pieces {
            if let Piece::For { target, over, .. } = piece
                && messages.iter().any(|name| is_access(over, name, None))
            {
                message_names.push(*target);
            }
        }
        let holds_content =
            |text: &str| message_names.iter().any(|name| is_access(text, name, Some("content")));
        let loops = pieces.iter().any(|piece| {
            let Piece::For { over, in_macro, .. } = piece else { return false };
            if holds_content(over) {
                return true;
            }
            match in_macro.and_then(|index| macros.get(index)) {
                None => over.trim() == "content",
                Some(owner) => passed(owner, &pieces, &holds_content).contains(&over.trim()),
            }
        });
        if loops { Self::Parts } else { Self::Text }
    }
}

fn read(source: &str) -> (Vec<Piece<'_>>, Vec<Macro<'_>>) {
    let mut pieces = Vec::new();
    let mut macros: Vec<Macro<'_>> = Vec::new();
    let mut open = None;
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        rest = &rest[at..];
        let close = match rest.as_bytes().get(1) {
            Some(b'%') => "%}",
            Some(b'{') => "}}",
            Some(b'#') => "#}",
            _ => {
                rest = &rest[1..];
                continue;
            }
        };
        let end = end_of(&rest[2..], close) + 2;
        let inner = rest[2..end].trim_matches(['-', '+']).trim();
        if close == "%}" {
            let (word, after) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
            match word {
                "for" => {
                    if let Some((target, over)) = after.split_once(" in ") {
                        let over = outside(over, " if ");
                        let over = over.trim().trim_end_matches("recursive").trim();
                        pieces.push(Piece::For { target: target.trim(), over, in_macro: open });
                    }
                }
                "set" => {
                    if let Some((target, value)) = after.split_once('=') {
                        pieces.push(Piece::Set { target: target.trim(), value: value.trim() });
                    }
                }
                "macro" => {
                    if let Some((name, parameters)) = after.split_once('(') {
                        let parameters = parameters.trim_end().trim_end_matches(')').split(',');
                        let name_of = |text: &'_ str| text.find('=').unwrap_or(text.len());
                        let parameters = parameters.map(|one| one[..name_of(one)].trim()).collect();
                        open = Some(macros.len());
                        macros.push(Macro { name: name.trim(), parameters });
                    }
                }
                "endmacro" => open = None,
                _ => {}
            }
        }
        if close != "#}" {
            pieces.push(Piece::Other(inner));
        }
        rest = rest.get(end + 2..).unwrap_or("");
    }
    (pieces, macros)
}

/// Offset of the end mark outside of quotes; comments have no quotes.
fn end_of(text: &str, close: &str) -> usize {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match quote {
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if text.as_bytes()[at..].starts_with(close.as_bytes()) => return at,
            None if (byte == b'"' || byte == b'\'') && close != "#}" => quote = Some(byte),
            None => {}
        }
    }
    text.len()
}

/// The part before a word.
fn outside<'s>(text: &'s str, word: &str) -> &'s str {
    text.find(word).map_or(text, |at| &text[..at])
}

/// A name and the names that it is assigned to, whole, filtered or sliced.
fn with_aliases<'s>(root: &'s str, pieces: &[Piece<'s>]) -> Vec<&'s str> {
    let mut names = vec![root];
    let mut at = 0;
    while let Some(name) = names.get(at).copied() {
        for piece in pieces {
            if let Piece::Set { target, value } = piece
                && is_access(value, name, None)
                && !names.contains(target)
            {
                names.push(target);
            }
        }
        at += 1;
    }
    names
}

/// Whether an expression is a variable, or its member `key`, possibly filtered, tested or sliced.
fn is_access(text: &str, name: &str, key: Option<&str>) -> bool {
    let Some(mut rest) = text.trim().strip_prefix(name) else { return false };
    if let Some(key) = key {
        rest = rest.trim_start();
        let quoted = ["'", "\""].iter().find_map(|quote| {
            let inner = rest.strip_prefix('[')?.trim_start().strip_prefix(quote)?;
            inner.strip_prefix(key)?.strip_prefix(quote)?.trim_start().strip_prefix(']')
        });
        match quoted.or_else(|| rest.strip_prefix('.')?.strip_prefix(key)) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    let rest = rest.trim_start();
    rest.is_empty()
        || rest.starts_with('|')
        || rest.starts_with("is ")
        || (rest.starts_with('[') && rest.contains(':'))
}

/// Parameters of a macro that are given a message's content somewhere.
fn passed<'s>(owner: &Macro<'s>, pieces: &[Piece<'s>], holds_content: &dyn Fn(&str) -> bool) -> Vec<&'s str> {
    let mut found = Vec::new();
    for piece in pieces {
        let (Piece::Other(text) | Piece::Set { value: text, .. }) = piece else { continue };
        for (at, _) in text.match_indices(owner.name) {
            let Some(arguments) = text[at + owner.name.len()..].trim_start().strip_prefix('(') else {
                continue;
            };
            for (index, argument) in split_arguments(arguments).into_iter().enumerate() {
                let named = owner.parameters.iter().find(|name| {
                    let value =
                        argument.strip_prefix(**name).and_then(|rest| rest.trim_start().strip_prefix('='));
                    value.is_some_and(holds_content)
                });
                if let Some(name) = named {
                    found.push(*name);
                } else if holds_content(argument)
                    && let Some(name) = owner.parameters.get(index)
                {
                    found.push(*name);
                }
            }
        }
    }
    found
}

/// Arguments up to the bracket that closes the call.
fn split_arguments(text: &str) -> Vec<&str> {
    let mut arguments = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')') if depth == 0 => {
                arguments.push(text[start..at].trim());
                return arguments;
            }
            (None, b')' | b']' | b'}') => depth -= 1,
            (None, b',') if depth == 0 => {
                arguments.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_over_content_mean_parts() {
        use ContentFormat::{Parts, Text};
        for (source, expected) in [
            ("{% for m in messages %}{{ m['content'] }}{% endfor %}", Text),
            ("{% for m in messages %}{% for c in m['content'] %}{{ c.text }}{% endfor %}{% endfor %}", Parts),
            ("{%- for m in messages[1:] -%}{%- for c in m.content -%}{%- endfor -%}{%- endfor -%}", Parts),
            (
                "{% for m in messages %}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{% endfor %}{% endfor %}",
                Parts,
            ),
            (
                "{% set rest = messages[1:] %}{% for m in rest %}{% for c in m[\"content\"] %}{% endfor %}{% endfor %}",
                Parts,
            ),
            (
                "{% for m in messages %}{% set content = m.content %}{% for c in content %}{% endfor %}{% endfor %}",
                Parts,
            ),
            (
                "{% macro show(content) %}{% for c in content %}{% endfor %}{% endmacro %}{{ show(tools) }}",
                Text,
            ),
            (
                "{% macro show(x) %}{% for c in x %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.content, 1) }}{% endfor %}",
                Parts,
            ),
            (
                "{% macro show(a, x=none) %}{% for c in x %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(1, x=m.content) }}{% endfor %}",
                Parts,
            ),
            ("{# {% for c in content %} #}{% for t in tools %}{% endfor %}", Text),
            ("{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}", Text),
            ("{% for m in messages %}{{ '%}' }}{% for c in m.content %}{% endfor %}{% endfor %}", Parts),
            ("{", Text),
            ("{% for", Text),
            ("{% macro x", Text),
        ] {
            assert_eq!(ContentFormat::detect(source), expected, "{source}");
        }
    }
}
