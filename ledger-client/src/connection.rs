//! Reaching one gateway: TCP, TLS with its pinned key, WebSocket, hello.

use crate::network::GatewayAddress;
use crate::tls;
use futures_util::{SinkExt, StreamExt};
use mayfly_protocol::sync::{
    CHALLENGE_BYTES, EXPORTER_BYTES, EXPORTER_LABEL, FromClient, FromGateway, GATEWAY_FRAME_BYTES_MAX, PATH,
    SUBPROTOCOL, SyncError,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

/// Longest time from the first packet to the gateway's challenge.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Longest time that a frame to the gateway may take.
const SEND_MAX: Duration = Duration::from_secs(30);
/// Read buffer of the WebSocket.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// Most bytes that wait to be written.
const WRITE_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// Why a connection was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// TCP or TLS.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// WebSocket.
    #[error(transparent)]
    WebSocket(#[from] Box<tungstenite::Error>),
    /// Not in time.
    #[error("no answer in time")]
    TimedOut,
    /// The peer is no Mayfly gateway, or broke the protocol.
    #[error("the gateway broke the protocol: {0}")]
    Protocol(&'static str),
    /// A frame that is no message.
    #[error("the gateway sent a bad message")]
    Message(#[from] SyncError),
    /// It closed the connection.
    #[error("the gateway closed the connection")]
    Closed,
}

/// An open connection.
pub struct Connection {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    exporter: [u8; EXPORTER_BYTES],
}

impl Connection {
    /// Connects, and gives the gateway's first message: its versions and its challenge.
    pub async fn open(
        gateway: &GatewayAddress,
    ) -> Result<(Connection, Vec<u16>, [u8; CHALLENGE_BYTES]), ConnectionError> {
        timeout(CONNECT_MAX, Connection::connect(gateway)).await.map_err(|_| ConnectionError::TimedOut)?
    }

    async fn connect(
        gateway: &GatewayAddress,
    ) -> Result<(Connection, Vec<u16>, [u8; CHALLENGE_BYTES]), ConnectionError> {
        let config = tls::client_config(&gateway.key).ok_or(ConnectionError::Protocol("its key is not Ed25519"))?;
        let stream = TcpStream::connect(&gateway.address).await?;
        stream.set_nodelay(true)?; // a frame waits for no acknowledgement of the one before
        let stream = TlsConnector::from(Arc::new(config)).connect(tls::server_name(), stream).await?;
        let exported = stream.get_ref().1.export_keying_material([0; EXPORTER_BYTES], EXPORTER_LABEL, Some(&[]));
        let exporter = exported.map_err(|_| ConnectionError::Protocol("TLS gives no exporter"))?;
        let socket = upgrade(gateway, stream).await?;
        let mut connection = Connection { socket, exporter };
        match connection.receive().await? {
            Some(FromGateway::Challenge { versions, nonce }) => Ok((connection, versions, nonce)),
            _ => Err(ConnectionError::Protocol("its first message is no challenge")),
        }
    }

    /// The TLS exporter that binds a hello to this connection.
    pub fn exporter(&self) -> &[u8; EXPORTER_BYTES] {
        &self.exporter
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &FromClient) -> Result<(), ConnectionError> {
        self.send_frame(Message::binary(message.encode())).await
    }

    /// Sends a ping, which the gateway must answer.
    pub async fn ping(&mut self) -> Result<(), ConnectionError> {
        self.send_frame(Message::Ping(Default::default())).await
    }

    /// The next message. `None`: a control frame, or a message that may be passed over. Nothing is lost when the future is dropped.
    pub async fn receive(&mut self) -> Result<Option<FromGateway>, ConnectionError> {
        match self.socket.next().await {
            Some(Ok(Message::Binary(frame))) => Ok(FromGateway::decode(&frame)?),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
            Some(Ok(Message::Close(_))) | None => Err(ConnectionError::Closed),
            Some(Ok(_)) => Err(ConnectionError::Protocol("a frame is not binary")),
            Some(Err(e)) => Err(Box::new(e).into()),
        }
    }

    /// Says good-bye, without waiting for the answer.
    pub async fn close(mut self) {
        let _ = timeout(Duration::from_millis(100), self.socket.close(None)).await;
    }

    async fn send_frame(&mut self, frame: Message) -> Result<(), ConnectionError> {
        let sent = timeout(SEND_MAX, self.socket.send(frame)).await.map_err(|_| ConnectionError::TimedOut)?;
        sent.map_err(|e| Box::new(e).into())
    }
}

async fn upgrade(
    gateway: &GatewayAddress,
    stream: TlsStream<TcpStream>,
) -> Result<WebSocketStream<TlsStream<TcpStream>>, ConnectionError> {
    let uri = format!("wss://{}{PATH}", gateway.address);
    let mut request = uri.into_client_request().map_err(Box::new)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(GATEWAY_FRAME_BYTES_MAX))
        .max_frame_size(Some(GATEWAY_FRAME_BYTES_MAX));
    let (socket, response) =
        tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await.map_err(Box::new)?;
    if response.headers().get(SEC_WEBSOCKET_PROTOCOL).is_none_or(|chosen| chosen != SUBPROTOCOL) {
        return Err(ConnectionError::Protocol("it does not speak mayfly-ledger.v1"));
    }
    Ok(socket)
}
