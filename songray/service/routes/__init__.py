"""Routes of the application, one module a tag of the OpenAPI document."""
