"""Tool calls and their results as text, in the form of Qwen2.5's chat template."""

from __future__ import annotations

import json
from typing import Any

from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.importers.fields import Fields

_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def describe_tools(value: Any, name: str, system: str) -> str:
    """The system text that offers tools, after the sample's own.

    Raises:
        SampleError: no list of objects with a name each.
    """
    tools = read_json(value)
    tools = tools if isinstance(tools, list) else [tools]
    lines = []
    for tool in tools:
        tool = read_json(tool)
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise SampleError("tools", f"{name} has {shown(tool)}, expected functions with names")
        if "function" not in tool:
            tool = {"type": "function", "function": tool}
        lines.append(_to_json(tool))
    text = _TOOLS.format("\n".join(lines))
    return f"{system}\n\n{text}" if system else text


def write_calls(calls: Any, name: str, unused: list[str]) -> tuple[str, list[str]]:
    """The calls as text, and their ids as far as they have any.

    Args:
        calls: objects `{"name", "arguments"}`, or those as `function` of an object; or their JSON.
        unused: gets the names of the fields that are not taken over.

    Raises:
        SampleError: a call is of another form.
    """
    calls = read_json(calls)
    texts, ids = [], []
    for call in calls if isinstance(calls, list) else [calls]:
        call = read_json(call)
        if not isinstance(call, dict):
            raise SampleError("tools", f"{name} has {shown(call)}, expected an object")
        outer = Fields(call, f"{name}.")
        call_id = outer.take("id") if "id" in outer else None
        if call_id is not None:
            ids.append(str(call_id))
        if "type" in outer and outer.take("type") != "function":
            raise SampleError("tools", f"{name} has {shown(call)}, expected type function")
        inner = outer
        if "function" in outer:
            function = read_json(outer.take("function"))
            if not isinstance(function, dict):
                raise SampleError("tools", f"{name} has {shown(call)}, expected an object")
            inner = Fields(function, f"{name}.function.")
            unused += outer.leave(name)
        function_name = inner.take("name") if "name" in inner else None
        arguments = inner.take_one(("arguments", "parameters"))[1]
        arguments = {} if arguments is None else read_json(arguments)
        if not isinstance(function_name, str) or not isinstance(arguments, dict):
            raise SampleError(
                "tools", f"{name} has {shown(call)}, expected a name, and arguments as an object"
            )
        unused += inner.leave(name)
        text = _to_json({"name": function_name, "arguments": arguments})
        texts.append(f"<tool_call>\n{text}\n</tool_call>")
    return "\n".join(texts), ids


def write_result(content: str) -> str:
    """What a tool gave, as (a part of) a user turn."""
    return f"<tool_response>\n{content}\n</tool_response>"


def read_json(value: Any) -> Any:
    """`value`, or what it says where it is JSON of an object or a list in a text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError("tools", f"{shown(value)} cannot be written as JSON: {error}") from None
