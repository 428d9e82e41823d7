//! runtime.v1.ImageService.
