//! Tokenizers named on the command line or in a configuration.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use fairlead_config::Gateway;
use fairlead_dataplane::{TokenModels, Tokenising};
use fairlead_tokens::TokenModel;

#[derive(Args)]
pub struct TokenizerArgs {
    /// Route the prompts of a model by token ids: its tokenizer.json, or the folder that holds it; for all models
    /// without MODEL=; repeatable
    #[arg(long, value_name = "[MODEL=]PATH")]
    tokenizer: Vec<String>,
    /// File with the chat template that the engines were given, where it is not the tokenizer's own; repeatable
    #[arg(long, value_name = "[MODEL=]FILE", requires = "tokenizer")]
    chat_template: Vec<String>,
}

impl TokenizerArgs {
    /// Adds what the command line names, instead of what was there for the same model.
    pub fn add(&self, models: &mut TokenModels) -> anyhow::Result<()> {
        let mut templates: Vec<_> = self.chat_template.iter().map(|text| Some(split(text))).collect();
        for text in &self.tokenizer {
            let (name, path) = split(text);
            let own = templates.iter_mut().find(|one| one.is_some_and(|(model, _)| model == name));
            let template = own.and_then(Option::take).map(|(_, file)| file);
            load(models, name, Path::new(path), template).with_context(|| format!("--tokenizer {text}"))?;
        }
        match templates.into_iter().flatten().next() {
            Some((name, _)) => anyhow::bail!(
                "--chat-template: there is no --tokenizer {}",
                name.map_or_else(|| "for all models".to_owned(), |name| format!("{name}=PATH"))
            ),
            None => Ok(()),
        }
    }
}

/// `MODEL=PATH`, or a path alone. A model's name may hold slashes, so only a path that exists is one with `=` in it.
fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, path)) if !Path::new(text).exists() => (Some(name), path),
        _ => (None, text),
    }
}

/// The tokenizers of a configuration.
pub fn models(section: &Gateway) -> anyhow::Result<TokenModels> {
    let mut models = TokenModels::default();
    for (at, entry) in section.models.iter().enumerate() {
        let context = || format!("gateway.models[{at}]");
        let Some(path) = entry.tokenizer.as_deref() else { continue };
        let template =
            entry.chat_template.as_deref().map(|file| file.to_str().context("chat_template: not UTF-8"));
        let template = template.transpose().with_context(context)?;
        load(&mut models, entry.name.as_deref(), path, template).with_context(context)?;
    }
    Ok(models)
}

/// The bounds of a configuration.
pub fn bounds(section: &Gateway) -> Tokenising {
    let bounds = &section.tokenising;
    Tokenising {
        in_line_text: bounds.in_line.bytes(),
        deadline: bounds.deadline,
        cache_bytes: bounds.cache.bytes(),
        ..Tokenising::default()
    }
}

fn load(
    models: &mut TokenModels,
    name: Option<&str>,
    path: &Path,
    template: Option<&str>,
) -> anyhow::Result<()> {
    let model = TokenModel::load(path, template)?;
    if !model.has_template() {
        tracing::warn!(
            model = name.unwrap_or("*"),
            tokenizer = %path.display(),
            "no chat template: only plain prompts are routed by token ids"
        );
    }
    models.add(name, Arc::new(model));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_model_may_stand_before_the_path() {
        for (text, expected) in [
            ("/models/a", (None, "/models/a")),
            ("m=/models/a", (Some("m"), "/models/a")),
            ("org/m=tokenizer.json", (Some("org/m"), "tokenizer.json")),
            ("Cargo.toml", (None, "Cargo.toml")),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }
}
