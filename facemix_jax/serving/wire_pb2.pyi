from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("shape", "dtype", "data", "scales")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    data: bytes
    scales: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., data: _Optional[bytes] = ..., scales: _Optional[_Iterable[float]] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("version", "model_id", "request_id", "activations")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    version: int
    model_id: str
    request_id: bytes
    activations: Tensor
    def __init__(self, version: _Optional[int] = ..., model_id: _Optional[str] = ..., request_id: _Optional[bytes] = ..., activations: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("version", "model_id", "request_id", "responses")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    version: int
    model_id: str
    request_id: bytes
    responses: Tensor
    def __init__(self, version: _Optional[int] = ..., model_id: _Optional[str] = ..., request_id: _Optional[bytes] = ..., responses: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("version", "model_id", "activation_shape", "response_shape", "max_rows", "dtypes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_SHAPE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    version: int
    model_id: str
    activation_shape: _containers.RepeatedScalarFieldContainer[int]
    response_shape: _containers.RepeatedScalarFieldContainer[int]
    max_rows: int
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., model_id: _Optional[str] = ..., activation_shape: _Optional[_Iterable[int]] = ..., response_shape: _Optional[_Iterable[int]] = ..., max_rows: _Optional[int] = ..., dtypes: _Optional[_Iterable[str]] = ...) -> None: ...
