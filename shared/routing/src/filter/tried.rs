//! What a request has tried already.

use crate::fleet::TargetEntry;
use crate::request::PlanRequest;

/// The request has failed at this target.
pub(super) fn is_tried(request: &PlanRequest<'_>, target: &TargetEntry) -> bool {
    request.tried.iter().any(|tried| tried.id == target.id)
}

/// The request has failed at a target of this one's host.
pub(super) fn is_host_tried(request: &PlanRequest<'_>, target: &TargetEntry) -> bool {
    request.tried.iter().any(|tried| tried.info.host == target.info.host)
}
