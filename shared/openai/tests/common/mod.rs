//! Writes the same JSON in many ways: spacing, escapes and member order follow a seed.
#![allow(dead_code)]

use serde_json::Value;

pub struct Writer {
    state: u64,
    /// Whether the ways differ at all; plain compact JSON if not.
    pub vary: bool,
}

impl Writer {
    pub fn plain() -> Self {
        Self { state: 0, vary: false }
    }

    pub fn seeded(seed: u64) -> Self {
        Self { state: seed | 1, vary: true }
    }

    /// A number below `bound`, 0 when nothing varies.
    fn below(&mut self, bound: u64) -> u64 {
        if !self.vary {
            return 0;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % bound
    }

    pub fn space(&mut self) -> &'static str {
        ["", "", "", " ", "  ", "\n", "\r\n\t", " \n "][self.below(8) as usize]
    }

    pub fn string(&mut self, text: &str) -> String {
        let mut out = String::from("\"");
        for c in text.chars() {
            let way = self.below(8);
            let short = match c {
                '"' => Some("\\\""),
                '\\' => Some("\\\\"),
                '/' if way == 1 => Some("\\/"),
                '\n' => Some("\\n"),
                '\r' => Some("\\r"),
                '\t' => Some("\\t"),
                '\u{8}' => Some("\\b"),
                '\u{c}' => Some("\\f"),
                _ => None,
            };
            match short {
                Some(short) if way != 2 => out.push_str(short),
                None if c >= ' ' && way != 3 => out.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let hex = if way & 1 == 0 { format!("{unit:04x}") } else { format!("{unit:04X}") };
                        out.push_str(&format!("\\u{hex}"));
                    }
                }
            }
        }
        out.push('"');
        out
    }

    /// An object whose members come in any order.
    pub fn object(&mut self, mut members: Vec<(&str, String)>) -> String {
        for last in (1..members.len()).rev() {
            if self.vary {
                let other = self.below(last as u64 + 1) as usize;
                members.swap(last, other);
            }
        }
        self.ordered(members)
    }

    /// An object whose members keep their order.
    pub fn ordered(&mut self, members: Vec<(&str, String)>) -> String {
        let mut out = format!("{{{}", self.space());
        for (index, (key, value)) in members.into_iter().enumerate() {
            if index > 0 {
                out.push_str(&format!("{},{}", self.space(), self.space()));
            }
            out.push_str(&format!("{}{}:{}{value}", self.string(key), self.space(), self.space()));
        }
        out.push_str(self.space());
        out.push('}');
        out
    }

    pub fn array(&mut self, elements: Vec<String>) -> String {
        let mut out = format!("[{}", self.space());
        for (index, element) in elements.into_iter().enumerate() {
            if index > 0 {
                out.push_str(&format!("{},{}", self.space(), self.space()));
            }
            out.push_str(&element);
        }
        out.push_str(self.space());
        out.push(']');
        out
    }

    /// Any value, members in the order of the map.
    pub fn value(&mut self, value: &Value) -> String {
        match value {
            Value::String(text) => self.string(text),
            Value::Array(elements) => {
                let elements = elements.iter().map(|element| self.value(element)).collect();
                self.array(elements)
            }
            Value::Object(members) => {
                let members = members.iter().map(|(key, value)| (key.as_str(), self.value(value))).collect();
                self.ordered(members)
            }
            other => other.to_string(),
        }
    }
}

/// Few cases, and no file of past failures: a failure worth keeping becomes a row of a table.
pub fn config() -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        failure_persistence: None,
        ..proptest::test_runner::Config::with_cases(64)
    }
}

/// Any JSON value of moderate size.
pub fn any_value() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|quarters| Value::from(f64::from(quarters) / 4.0)),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(any_text(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Text with quotes, backslashes, control characters and characters of all lengths, sometimes long.
pub fn any_text() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    prop_oneof![
        3 => "[a-z]{0,12}",
        2 => "[ -~]{0,40}",
        2 => "(\\PC|[\"\\\\/\n\r\t\u{0}\u{7f}é世🦀]){0,30}",
        1 => "[a-zé\n]{60,120}",
    ]
}
