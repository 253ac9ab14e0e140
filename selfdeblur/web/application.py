"""The page as an application of a web server. Loaded only where Gradio is there."""

import contextlib
import logging
import signal
import traceback

import fastapi
import gradio
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from selfdeblur.web.page import POLICY, STYLE, make_page
from selfdeblur.web.serve import BYTES, SIGNALS

LOCAL = ("127.0.0.1", "localhost", "::1")


def run(args, listener, visits, samples, kind):
    """Answer at a socket until a signal comes."""
    config = uvicorn.Config(
        make_application(args, visits, samples, kind), log_level="error", timeout_graceful_shutdown=1, access_log=False
    )
    logging.getLogger("uvicorn.error").addFilter(_is_a_fault)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    print(f"selfdeblur: http://{address}:{port} (Ctrl-C ends it)", flush=True)
    _Server(config).run(sockets=[listener])


def _is_a_fault(record):
    """Whether a record of the log tells of a fault: a file that was asked for just as its page was closed is none."""
    text = "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""
    return not ("File at path" in text and "does not exist" in text)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        """Let a signal end the server, and be no more than that."""
        for name in SIGNALS:
            signal.signal(name, self.handle_exit)
        yield


def make_application(args, visits, samples, kind):
    """The application; on an address of this machine alone it answers no other name."""
    system = ["system-ui", "sans-serif"]
    blocks = make_page(visits, samples, args.device, kind, args.max_megapixels)
    application = fastapi.FastAPI(openapi_url=None)
    if args.host in LOCAL:
        application.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"])

    @application.middleware("http")
    async def restrict(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return gradio.mount_gradio_app(
        application,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        max_file_size=int(args.max_megapixels * 1e6 * BYTES) + (1 << 20),
        theme=gradio.themes.Default(primary_hue="blue", font=system, font_mono=["ui-monospace", "monospace"]).set(
            block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_300"
        ),
        css=STYLE,
    )
