//! The OpenAI and Anthropic API shapes: body scan, splices, SSE scan, errors.
