"""The bodies of requests and answers, as pydantic models: OpenAI's fields, and a few more that are marked as such.

A field that has one value without effect here is typed as that value, and one that is not supported as None, so the
OpenAPI schema says so and any other value is a 400 that names the field.
"""
