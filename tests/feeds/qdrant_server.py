"""A server that speaks Qdrant's gRPC protocol on the loopback, and answers by the client's own local mode.

    with qdrant_server() as server: ... server.url ...; server.faults.at("Points/Upsert", "lost")

It adds what the local mode leaves out and a server has: settings of collections, indexes of payloads without which a
filter is refused (as in strict mode), states of the optimiser, keys, and sizes of messages. For some calls it does what
servers and networks do at bad times. It is no proof of how a Qdrant server behaves.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from qdrant_client import QdrantClient
from qdrant_client import grpc as api
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from tests.feeds.faults import Faults

FAULTS = ("unavailable", "exhausted", "slow", "lost", "reset", "acknowledged")
"""UNAVAILABLE before anything is done; RESOURCE_EXHAUSTED with retry-after; a short wait; UNAVAILABLE, or a broken stream,
after the call was done; a write of points that is only acknowledged, and is never applied."""
FAIL, FAIL_AFTER = "fail", "fail after"
"""INTERNAL before, or after, the call was done: whoever called gives up."""
HANG, KILL, KILL_AFTER = "hang", "kill", "kill after"
"""No answer; SIGKILL to the `victim` before, or after, the call was done."""
RETRY_AFTER_S, SLOW_S, HANG_S = 0.3, 0.2, 20.0


class QdrantServer:
    def __init__(self, max_message: int, sink: bool) -> None:
        self.api_key = ""
        self.sink = sink
        """True takes points and forgets them, to measure the other side."""
        self._grpc = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", max_message)])
        self._grpc.add_generic_rpc_handlers((_Methods(self),))
        self.port = self._grpc.add_insecure_port("127.0.0.1:0")
        self.forget()
        self._grpc.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Begin as an empty server."""
        self.local = QdrantClient(":memory:")
        self.lock = threading.RLock()
        self.faults = Faults(FAULTS)
        self.version = "1.19.0"
        self.settings: dict[str, Any] = {}
        """What collections were created with, by their names, with later changes of the optimiser."""
        self.indexes: dict[str, dict[str, Any]] = {}
        self.thresholds: list[int] = []
        """All values of indexing_threshold that came."""
        self.refused: set[str] = set()
        """Rows with these ids are refused, and with them all of their request."""
        self.states: list[Any] = []
        """Collections have these states in the next answers, and then are green."""
        self.api_key = ""

    def stop(self) -> None:
        self._grpc.stop(0.2).wait()


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, server: QdrantServer) -> None:
        self.server = server

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method.removeprefix("/qdrant.")
        name = method.replace("/", "_").lower()
        request = _REQUESTS.get(method)
        if request is None:
            return None
        return grpc.unary_unary_rpc_method_handler(
            lambda message, context: self.answer(method, getattr(self, name), message, context),
            request_deserializer=request.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )

    def answer(self, method: str, do: Callable[[Any], Any], request: Any, context: Any) -> Any:
        server, faults = self.server, self.server.faults
        given = dict(context.invocation_metadata()).get("api-key", "")
        if given != server.api_key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{given!r} is no API key of this server")
        fault = faults.next(method)
        if fault == "unavailable":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the node is restarting")
        if fault == "exhausted":
            context.set_trailing_metadata((("retry-after", str(RETRY_AFTER_S)),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Rate limiting exceeded")
        if fault == FAIL:
            context.abort(grpc.StatusCode.INTERNAL, "Service internal error: injected")
        if fault == HANG:
            time.sleep(HANG_S)
        if fault == KILL:
            os.kill(faults.victim, signal.SIGKILL)
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "acknowledged" and method in ("Points/Upsert", "Points/Delete"):
            return api.PointsOperationResponse(result=api.UpdateResult(status=api.UpdateStatus.Acknowledged))
        answer = self._done(do, request, context)
        if fault == KILL_AFTER:
            os.kill(faults.victim, signal.SIGKILL)
        if fault == FAIL_AFTER:
            context.abort(grpc.StatusCode.INTERNAL, "Service internal error: injected")
        if fault == "lost":
            context.abort(grpc.StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer")
        if fault == "reset":
            context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")
        return answer

    def _done(self, do: Callable[[Any], Any], request: Any, context: Any) -> Any:
        name = getattr(request, "collection_name", "")
        try:
            with self.server.lock:
                return do(request)
        except ValueError as error:
            missing = "not found" in str(error) and name in str(error)
            code = grpc.StatusCode.NOT_FOUND if missing else grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, f"Wrong input: {error}")
        except Exception as error:
            context.abort(grpc.StatusCode.INTERNAL, f"Service internal error: {error!r}")

    # Points

    def points_upsert(self, request: api.UpsertPoints) -> Any:
        self._indexed(request.collection_name, request.update_filter)
        if not request.wait:
            raise ValueError("this server wants `wait`")
        for point in request.points:
            if point.payload["id"].string_value in self.server.refused:
                raise ValueError(f"point {point.id.uuid} is not to this server's taste")
        if not self.server.sink:
            self.server.local.upsert(
                request.collection_name,
                [GrpcToRest.convert_point_struct(point) for point in request.points],
                update_filter=GrpcToRest.convert_filter(request.update_filter),
            )
        return _completed()

    def points_delete(self, request: api.DeletePoints) -> Any:
        self._indexed(request.collection_name, request.points.filter)
        self.server.local.delete(request.collection_name, GrpcToRest.convert_points_selector(request.points))
        return _completed()

    def points_createfieldindex(self, request: api.CreateFieldIndexCollection) -> Any:
        self.server.local.get_collection(request.collection_name)
        self.server.indexes.setdefault(request.collection_name, {})[request.field_name] = request.field_type
        return _completed()

    def points_get(self, request: api.GetPoints) -> Any:
        found = self.server.local.retrieve(
            request.collection_name,
            [GrpcToRest.convert_point_id(one) for one in request.ids],
            with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
            with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
        )
        return api.GetResponse(result=[RestToGrpc.convert_record(one) for one in found])

    def points_scroll(self, request: api.ScrollPoints) -> Any:
        found, following = self.server.local.scroll(
            request.collection_name,
            limit=request.limit,
            offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
            with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
            with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
        )
        answer = api.ScrollResponse(result=[RestToGrpc.convert_record(one) for one in found])
        if following is not None:
            answer.next_page_offset.CopyFrom(RestToGrpc.convert_extended_point_id(following))
        return answer

    def points_count(self, request: api.CountPoints) -> Any:
        count = self.server.local.count(request.collection_name).count
        # Without `exact` a server says about how many there are.
        return api.CountResponse(result=api.CountResult(count=count if request.exact else count + 7))

    def points_querybatch(self, request: api.QueryBatchPoints) -> Any:
        answers = []
        for query in request.query_points:
            self._indexed(request.collection_name, query.filter)
            found = self.server.local.query_points(
                request.collection_name,
                query=list(query.query.nearest.dense.data),
                query_filter=GrpcToRest.convert_filter(query.filter) if query.HasField("filter") else None,
                limit=query.limit,
                with_payload=GrpcToRest.convert_with_payload_selector(query.with_payload),
            ).points
            answers.append(api.BatchResult(result=[RestToGrpc.convert_scored_point(one) for one in found]))
        return api.QueryBatchResponse(result=answers)

    def _indexed(self, name: str, wanted: api.Filter) -> None:
        known = self.server.indexes.get(name, {})
        for condition in [*wanted.must, *wanted.must_not]:
            path = condition.field.key or condition.is_empty.key
            if path and path not in known:
                raise ValueError(f"Index required but not found for {path!r}")

    # Collections

    def collections_list(self, request: Any) -> Any:
        found = self.server.local.get_collections().collections
        return api.ListCollectionsResponse(collections=[api.CollectionDescription(name=one.name) for one in found])

    def collections_get(self, request: api.GetCollectionInfoRequest) -> Any:
        info = RestToGrpc.convert_collection_info(self.server.local.get_collection(request.collection_name))
        settings = self.server.settings[request.collection_name]
        info.config.optimizer_config.MergeFrom(settings.optimizers_config)
        info.config.hnsw_config.MergeFrom(settings.hnsw_config)
        info.points_count += 3  # about
        if self.server.states:
            info.status = self.server.states.pop(0)
            if info.status == api.CollectionStatus.Red:
                info.optimizer_status.ok, info.optimizer_status.error = False, "No space left on device"
        return api.GetCollectionInfoResponse(result=info)

    def collections_collectionexists(self, request: api.CollectionExistsRequest) -> Any:
        exists = self.server.local.collection_exists(request.collection_name)
        return api.CollectionExistsResponse(result=api.CollectionExists(exists=exists))

    def collections_create(self, request: api.CreateCollection) -> Any:
        self.server.local.create_collection(
            request.collection_name,
            vectors_config=GrpcToRest.convert_vectors_config(request.vectors_config),
            metadata=GrpcToRest.convert_payload(request.metadata) if request.metadata else None,
        )
        self.server.settings[request.collection_name] = request
        self.server.indexes[request.collection_name] = {}
        return api.CollectionOperationResponse(result=True)

    def collections_update(self, request: api.UpdateCollection) -> Any:
        if request.metadata:
            metadata = GrpcToRest.convert_payload(request.metadata)
            self.server.local.update_collection(request.collection_name, metadata=metadata)
        self.server.settings[request.collection_name].optimizers_config.MergeFrom(request.optimizers_config)
        if request.optimizers_config.HasField("indexing_threshold"):
            self.server.thresholds.append(request.optimizers_config.indexing_threshold)
        return api.CollectionOperationResponse(result=True)

    def collections_delete(self, request: api.DeleteCollection) -> Any:
        existed = self.server.local.delete_collection(request.collection_name)
        return api.CollectionOperationResponse(result=bool(existed))

    def collections_updatealiases(self, request: api.ChangeAliases) -> Any:
        # A server may refuse what the local mode lets pass: neither is needed.
        known = {one.alias_name for one in self.server.local.get_aliases().aliases}
        for action in request.actions:
            if action.HasField("delete_alias"):
                known.remove(action.delete_alias.alias_name)
            elif action.create_alias.alias_name in known:
                raise ValueError(f"alias {action.create_alias.alias_name} exists")
        self.server.local.update_collection_aliases(
            [GrpcToRest.convert_alias_operations(action) for action in request.actions]
        )
        return api.CollectionOperationResponse(result=True)

    def collections_listaliases(self, request: Any) -> Any:
        found = self.server.local.get_aliases().aliases
        return api.ListAliasesResponse(aliases=[RestToGrpc.convert_alias_description(one) for one in found])

    def qdrant_healthcheck(self, request: Any) -> Any:
        return api.HealthCheckReply(title="qdrant - vector search engine", version=self.server.version)


_REQUESTS = {
    "Points/Upsert": api.UpsertPoints,
    "Points/Delete": api.DeletePoints,
    "Points/CreateFieldIndex": api.CreateFieldIndexCollection,
    "Points/Get": api.GetPoints,
    "Points/Scroll": api.ScrollPoints,
    "Points/Count": api.CountPoints,
    "Points/QueryBatch": api.QueryBatchPoints,
    "Collections/Get": api.GetCollectionInfoRequest,
    "Collections/List": api.ListCollectionsRequest,
    "Collections/CollectionExists": api.CollectionExistsRequest,
    "Collections/Create": api.CreateCollection,
    "Collections/Update": api.UpdateCollection,
    "Collections/Delete": api.DeleteCollection,
    "Collections/UpdateAliases": api.ChangeAliases,
    "Collections/ListAliases": api.ListAliasesRequest,
    "Qdrant/HealthCheck": api.HealthCheckRequest,
}


def _completed() -> Any:
    return api.PointsOperationResponse(result=api.UpdateResult(operation_id=1, status=api.UpdateStatus.Completed))


@contextlib.contextmanager
def qdrant_server(max_message: int = 32 << 20, sink: bool = False) -> Iterator[QdrantServer]:
    """It takes messages of `max_message` bytes at most."""
    server = QdrantServer(max_message, sink)
    try:
        yield server
    finally:
        server.stop()
