"""What is asked of Linear, in its own language. Lists say how many: an unsaid size costs the complexity of fifty."""

from __future__ import annotations

PAGE = 50
"""How many of a list come at once; Linear gives at most 250."""

_ACTOR = "id name email app"
_ISSUE = f"""
  id identifier previousIdentifiers title description url createdAt updatedAt trashed
  labels(first: {PAGE}) {{ nodes {{ id name }} }}
  team {{ id key name }} project {{ id name }} state {{ id name type }}
  creator {{ {_ACTOR} }} externalUserCreator {{ id name }} botActor {{ id name type }} delegate {{ {_ACTOR} }}
"""
_COMMENTS = f"""
  pageInfo {{ hasNextPage endCursor }}
  nodes {{
    id body createdAt editedAt parentId url
    user {{ {_ACTOR} }} externalUser {{ id name }} botActor {{ id name type }}
  }}
"""

ISSUE = f"""
query Issue($id: String!) {{
  issue(id: $id) {{ {_ISSUE} comments(first: {PAGE}) {{ {_COMMENTS} }} }}
}}
"""
COMMENTS = f"""
query Comments($id: String!, $after: String) {{
  issue(id: $id) {{ comments(first: {PAGE}, after: $after) {{ {_COMMENTS} }} }}
}}
"""
LABELLED_ISSUES = f"""
query Issues($filter: IssueFilter!, $after: String) {{
  issues(filter: $filter, first: {PAGE}, after: $after, orderBy: updatedAt) {{
    pageInfo {{ hasNextPage endCursor }}
    nodes {{ {_ISSUE} }}
  }}
}}
"""
HISTORY = f"""
query History($id: String!, $after: String) {{
  issue(id: $id) {{
    history(first: {PAGE}, after: $after) {{
      pageInfo {{ hasNextPage endCursor }}
      nodes {{
        id createdAt updatedAt addedLabels {{ id name }} fromTitle updatedDescription
        actor {{ {_ACTOR} }} botActor {{ id name type }} descriptionUpdatedBy {{ {_ACTOR} }}
      }}
    }}
  }}
}}
"""
VIEWER = f"query Viewer {{ viewer {{ {_ACTOR} organization {{ id name }} }} }}"
STATES = f"""
query States($team: String!, $type: String!) {{
  team(id: $team) {{ states(filter: {{type: {{eq: $type}}}}, first: {PAGE}) {{ nodes {{ id name type position }} }} }}
}}
"""
LABEL = f"""
query Label($name: String!) {{
  issueLabels(filter: {{name: {{eqIgnoreCase: $name}}}}, first: {PAGE}) {{ nodes {{ id name team {{ id }} }} }}
}}
"""
_SESSION = f"""
  id status createdAt updatedAt issue {{ id identifier previousIdentifiers }} creator {{ {_ACTOR} }} appUser {{ id }}
"""
SESSION = f"query Session($id: String!) {{ agentSession(id: $id) {{ {_SESSION} }} }}"
SESSIONS = f"""
query Sessions($after: String) {{
  agentSessions(first: {PAGE}, after: $after, orderBy: updatedAt) {{
    pageInfo {{ hasNextPage endCursor }}
    nodes {{ {_SESSION} }}
  }}
}}
"""
PROMPTS = f"""
query Prompts($id: String!, $after: String) {{
  agentSession(id: $id) {{
    activities(first: {PAGE}, after: $after, filter: {{type: {{eq: "prompt"}}}}) {{
      pageInfo {{ hasNextPage endCursor }}
      nodes {{ id createdAt signal user {{ {_ACTOR} }} content {{ ... on AgentActivityPromptContent {{ body }} }} }}
    }}
  }}
}}
"""
COMMENT_IS_THERE = "query CommentIsThere($id: String!) { comment(id: $id) { id } }"
ACTIVITY_IS_THERE = "query ActivityIsThere($id: String!) { agentActivity(id: $id) { id } }"

UPDATE_ISSUE = """
mutation UpdateIssue($id: String!, $input: IssueUpdateInput!) { issueUpdate(id: $id, input: $input) { success } }
"""
CREATE_COMMENT = "mutation CreateComment($input: CommentCreateInput!) { commentCreate(input: $input) { success } }"
UPDATE_COMMENT = """
mutation UpdateComment($id: String!, $input: CommentUpdateInput!) { commentUpdate(id: $id, input: $input) { success } }
"""
CREATE_ACTIVITY = """
mutation CreateActivity($input: AgentActivityCreateInput!) { agentActivityCreate(input: $input) { success } }
"""
UPDATE_SESSION = """
mutation UpdateSession($id: String!, $input: AgentSessionUpdateInput!) {
  agentSessionUpdate(id: $id, input: $input) { success }
}
"""
